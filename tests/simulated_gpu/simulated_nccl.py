"""Collectives on the simulated GPU: gloo on the same memory. They can be captured."""

import simulated_gpu
import torch
import torch.distributed as dist
from simulated_gpu import host
from torch._C import _distributed_c10d as c10d

ops = torch.ops.c10d
_libraries: list = []


def _hosts(tree):
    if isinstance(tree, torch.Tensor):
        return host(tree)
    return [_hosts(t) for t in tree] if isinstance(tree, list | tuple) else tree


# By operator: arguments of gloo's, given those of NCCL's.
OPERATORS = {
    "allreduce_": lambda t, group, op, *_: (_hosts(t), group, op, None, False, -1),
    "broadcast_": lambda t, group, root, part, *_: (_hosts(t), group, root, part, False, -1),
    "allgather_": lambda to, t, group, *_: (_hosts(to), _hosts(t), group, False, -1),
    "_allgather_base_": lambda to, t, group, *_: (host(to), host(t), group, False, -1),
    "allreduce_coalesced_": lambda t, group, op, *_: (_hosts(t), group, op, False, -1),
}


def _collective(name, arguments_of):
    operator = getattr(ops, name).default

    def call(*args):
        own = arguments_of(*args)
        written = simulated_gpu._flat([args[0]])

        def run():
            found = operator(*own)
            work = found[-1] if isinstance(found, tuple) else found
            with torch.no_grad():
                c10d.Work.unbox(work).wait()

        device = written[0].device
        # NCCL gathers into one tensor; a list of them is copied out of it.
        more = len(written) if name == "allgather_" else 0
        for number in range(1 + more):
            simulated_gpu._log(
                f"c10d.{name}" if not number else "copy_", sum(t.nbytes for t in written)
            )
        if simulated_gpu._is_captured(device):
            simulated_gpu.captured_ops.value += 1
            simulated_gpu._open_tapes[-1].append((run, [], {}, []))
        else:
            run()
        future = torch.futures.Future(devices=[device])
        future.set_result(written)
        work = c10d._create_work_from_future(future).boxed()
        return work if name == "allreduce_coalesced_" else (args[0], work)

    return call


def install():
    """Let gloo take the place of NCCL."""
    library = torch.library.Library("c10d", "IMPL")
    _libraries.append(library)
    for name, arguments_of in OPERATORS.items():
        library.impl(name, _collective(name, arguments_of), "CUDA", allow_override=True)
    begin = dist.init_process_group

    def init_process_group(backend=None, *args, **kwargs):
        return begin("gloo" if "nccl" in str(backend) else backend, *args, **kwargs)

    dist.init_process_group = init_process_group
