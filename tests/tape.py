"""A stand-in for a CUDA graph on a CPU: records the operations of a call, and does them again.

As a graph, it knows nothing of the host: what was a number in Python stays that number, and operations
read and write the memory that they did when they were recorded. What needs the host fails.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# What a graph cannot hold: asking a tensor for its value, and making one of the host's values.
HOST = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.lift_fresh.default,
}


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []
        self.known = {}  # storages by identity: as they were before, or None where made here

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation not in HOST, f"{operation}: needs the host"
        kwargs = kwargs or {}
        for storage in map(torch.Tensor.untyped_storage, tensors_of((args, kwargs))):
            if storage._cdata not in self.known:
                self.known[storage._cdata] = storage, storage.clone()
        result = operation(*args, **kwargs)
        for storage in map(torch.Tensor.untyped_storage, tensors_of(result)):
            self.known.setdefault(storage._cdata, (storage, None))
        if not operation.is_view:
            read = {t.untyped_storage()._cdata for t in tensors_of((args, kwargs))}
            made = [
                t if t.untyped_storage()._cdata not in read else None for t in tensors_of(result)
            ]
            # Lists of tensors may be emptied once the operation is done.
            args, kwargs = tree_map(lambda leaf: leaf, (args, kwargs))
            self.operations.append((operation, args, kwargs, made))
        return result

    def undo(self):
        for storage, before in self.known.values():
            if before is not None:
                storage.copy_(before)

    @torch.no_grad()
    def replay(self):
        for operation, args, kwargs, made in self.operations:
            result = operation(*args, **kwargs)
            for old, new in zip(made, tensors_of(result), strict=True):
                if old is not None:
                    old.copy_(new)


def record(run):
    """Record a call, as `capture.recorder` returns what does: nothing has happened after it."""
    tape = Tape()
    with tape:
        outputs = run()
    tape.undo()
    return tape.replay, outputs
