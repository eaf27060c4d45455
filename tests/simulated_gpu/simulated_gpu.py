"""PyTorch's CUDA kernels, computed on the CPU; imported over the runtime that build.py compiles.

Every kernel that PyTorch has registered for CUDA is replaced by one that looks at the same memory as CPU
tensors and calls the CPU's kernel. What a GPU refuses is refused: tensors of the host beside those of
the device, generators of the host, and whatever waits for the host while a stream is captured. `watch`
lists the operators of a step, and what made the host wait in it.

All that is private in torch and used here is in `_PRIVATE` and in cuda_operators.py.
"""

import ctypes
import os
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from cuda_operators import DEPTH, FUNCTIONS, HOST_INDICES, KERNELS, LISTS, NATIVE, WAITS

CPU = torch.device("cpu")
aten = torch.ops.aten

_PRIVATE = (
    *("_construct_storage_from_data_pointer", "_cuda_getCurrentRawStream"),
    *("_dispatch_get_registrations_for_dispatch_key", "_AutoDispatchBelowAutograd"),
)
library = ctypes.CDLL(os.environ["SIMULATED_GPU"])
for _name in ("sim_kind", "sim_stream_capturing"):
    getattr(library, _name).argtypes = [ctypes.c_ulonglong]
_counter = ctypes.c_ulonglong.in_dll
capturing = ctypes.c_int.in_dll(library, "sim_capturing")
captured_ops, waits_in_c = (_counter(library, name) for name in ("sim_captured_ops", "sim_waits"))
graphs = _counter(library, "sim_graphs")


@dataclass
class Operator:
    """One operator that ran on the device."""

    name: str
    part: str
    kernels: int
    bytes: int


@dataclass
class Watched:
    """What happened in the block of `watch`.

    Attributes:
        operators: in order.
        waits: what made the host wait for the device, with the lines that asked for it.
        pageable: copies between the device and memory that is not pinned, likewise.
    """

    operators: list[Operator] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    pageable: list[str] = field(default_factory=list)

    @property
    def kernels(self):
        """How many kernels were launched."""
        return sum(operator.kernels for operator in self.operators)


_watched: Watched | None = None
_parts = [""]
_tapes: dict[int, list] = {}
_open_tapes: list[list] = []
_storages: dict = {}
_lock = threading.Lock()


@contextmanager
def watch():
    """List what the device is asked to do in this block; yields a `Watched`."""
    global _watched
    before, _watched = waits_in_c.value, Watched()
    try:
        yield _watched
        if number := waits_in_c.value - before:
            _watched.waits.append(f"{number} times: a stream, the device or cudaMemcpy")
    finally:
        _watched = None


@contextmanager
def part(name):
    """Attribute the operators of this block, those of the backward pass too, to a part of the step."""
    _parts.append(name)
    try:
        yield
    finally:
        _parts.pop()


def _asked():
    """Return the innermost lines outside of torch and of this file."""
    frames = traceback.extract_stack()
    lines = [f for f in frames if "/torch/" not in f.filename and f.filename != __file__]
    return " < ".join(f"{'/'.join(f.filename.split('/')[-2:])}:{f.lineno}" for f in lines[:-4:-1])


def _waits(what):
    if capturing.value:
        raise RuntimeError(
            f"CUDA error: operation not permitted when stream is capturing ({what}: {_asked()})"
        )
    if torch.cuda.get_sync_debug_mode():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
    if _watched is not None:
        _watched.waits.append(f"{what}: {_asked()}")


def host(t):
    """Return a CPU tensor over the memory of a CUDA tensor."""
    if t.numel() == 0:
        return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype)
    storage = t.untyped_storage()
    key = storage.data_ptr(), storage.nbytes()
    with _lock:
        if len(_storages) > 4096:
            _storages.clear()
        if key not in _storages:
            _storages[key] = torch._C._construct_storage_from_data_pointer(key[0], CPU, key[1])
        own = _storages[key]
    return torch.empty(0, dtype=t.dtype).set_(own, t.storage_offset(), t.size(), t.stride())


def _bytes(t):
    """Bytes that reading a tensor once moves: an expanded dimension is read once."""
    n = t.element_size()
    for size, stride in zip(t.size(), t.stride(), strict=True):
        n *= size if stride else 1
    return n


def _flat(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [t for item in tree for t in _flat(item)] if isinstance(tree, list | tuple) else []


def _is_captured(device):
    stream = torch._C._cuda_getCurrentRawStream(device.index or 0)
    return bool(capturing.value) and bool(library.sim_stream_capturing(stream))


def _log(name, moved, tensors=1):
    if _watched is None:
        return
    base = name.split(".")[0]
    kernels = KERNELS.get(base, 1)
    if base.startswith(("_foreach", "_fused")):
        depth = DEPTH.get(base, 1)
        kernels = max(1, -(-(tensors // depth) // LISTS[depth])) + (base == "_foreach_norm")
    _watched.operators.append(Operator(name, _parts[-1], kernels, moved))


class Kernel:
    """An operator for CUDA tensors.

    Args:
        name: of the operator.
        op: its overload.
        function: what computes it on CPU tensors; by default the operator itself.
    """

    def __init__(self, name, op, function=None):
        self.name, self.op, self.function = name, op, function or op
        arguments = op._schema.arguments
        self.names = [a.name for a in arguments]
        written = [a for a in arguments if a.alias_info is not None and a.alias_info.is_write]
        self.written = {a.name for a in written}
        if "batch_norm" in name:  # its declaration conceals that it writes these
            self.written |= {"running_mean", "running_var"} & set(self.names)
        self.scalars = [str(a.type) == "Tensor" for a in arguments]
        # Which argument a result is, as those of operators in place; None: a new tensor.
        sets = {s: a.name for a in written for s in a.alias_info.before_set}
        infos = [r.alias_info for r in op._schema.returns]
        self.returned = [
            next((sets[s] for s in info.before_set if s in sets), None) if info else None
            for info in infos
        ]

    def __call__(self, *args, **kwargs):
        named = dict(zip(self.names, args, strict=False)) | kwargs
        device = next(
            (
                v.device if isinstance(v, torch.Tensor) else v
                for v in (*_flat(list(named.values())), *named.values())
                if getattr(v, "device", v) is not None
                and isinstance(v, torch.Tensor | torch.device)
                and (v.device if isinstance(v, torch.Tensor) else v).type == "cuda"
            ),
            None,
        )
        if device is None:
            return self.function(*args, **kwargs)
        reads = [t for n, v in named.items() if n not in self.written for t in _flat(v)]
        writes = [t for n, v in named.items() if n in self.written for t in _flat(v)]
        self._check(named, device)
        function = self.function
        if function is self.op and any(
            wanted and isinstance(a, int | float)
            for wanted, a in zip(self.scalars, args, strict=False)
        ):
            function = self.op.overloadpacket  # C++ has wrapped a number into a tensor
        aliases: list = []
        seen = {n: self._seen(v, n in self.written, aliases) for n, v in named.items()}
        own = [seen[n] for n in self.names[: len(args)]], {n: seen[n] for n in kwargs}
        captured = _is_captured(device)
        before = [(h, h.clone()) for _, h in aliases if captured and h.numel()]
        drawn = torch.get_rng_state() if captured else None
        out = function(*own[0], **own[1])
        for t, h in aliases:
            if (
                t.size() != h.size()
            ):  # an empty out= argument: a replay has to write where it is now
                new = host(t.resize_(h.size()))
                new.copy_(h)
                own = (
                    [new if v is h else v for v in own[0]],
                    {n: new if v is h else v for n, v in own[1].items()},
                )
        made: list = []
        result = self._result(out, named, device, made)
        moved = sum(map(_bytes, [*reads, *writes, *(m for m in made if m is not None)]))
        _log(self.name, moved, len(reads) + len(writes))
        if captured:  # nothing is computed yet; shapes are known
            torch.set_rng_state(drawn)
            for h, old in before:
                h.copy_(old)
            for m in (m for m in made if m is not None and m.numel()):
                m.fill_(float("nan") if m.is_floating_point() or m.is_complex() else 0)
            captured_ops.value += 1
            _open_tapes[-1].append((function, *own, made))
        return result

    def _check(self, named, device):
        for t in (t for v in named.values() for t in _flat(v)):
            if (t.is_cuda and t.device != device) or (not t.is_cuda and t.dim()):
                if not t.is_cuda and self.name in HOST_INDICES:
                    _waits(f"{self.name} with indices of the host")
                    continue
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{device} and {t.device}! ({self.name}, shape {list(t.shape)}: {_asked()})"
                )
            if not t.is_cuda and self.name.startswith("where."):
                _waits("where with a scalar tensor of the host")
        for v in named.values():
            if isinstance(v, torch.Generator) and v.device.type != "cuda":
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if self.name in WAITS:
            _waits(self.name)
        indices = named.get("indices") if self.name in HOST_INDICES else None
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices or []):
            _waits(f"{self.name} by a mask")

    def _seen(self, value, write, aliases):
        if isinstance(value, torch.Tensor) and value.is_cuda:
            alias = host(value)
            if write:
                aliases.append((value, alias))
            return alias
        if isinstance(value, list | tuple):
            return [self._seen(v, write, aliases) for v in value]
        if isinstance(value, torch.device):
            return CPU
        return None if isinstance(value, torch.Generator) else value

    def _result(self, out, named, device, made):
        if not self.returned:
            return None
        results = []
        for name, value in zip(
            self.returned, (out,) if len(self.returned) == 1 else out, strict=True
        ):
            if name is not None:
                results.append(named[name])
                made += [None] * len(_flat(value))
            else:
                results.append(self._new(value, device, made))
        return results[0] if len(results) == 1 else tuple(results)

    def _new(self, value, device, made):
        if isinstance(value, list | tuple):
            return [self._new(v, device, made) for v in value]
        if not isinstance(value, torch.Tensor):
            return value
        found = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)
        made.append(host(found))
        made[-1].copy_(value)
        return found


class Copy(Kernel):
    """copy_, also from and to the host."""

    def __call__(self, dst, src, non_blocking=False):
        if dst.is_cuda and src.is_cuda:
            return super().__call__(dst, src, non_blocking)
        way, other = ("to", src) if dst.is_cuda else ("from", dst)
        pinned = other.numel() == 0 or library.sim_kind(other.data_ptr()) == 1
        if not non_blocking or (not pinned and way == "from"):
            _waits(f"a copy {way} the device that waits")
        elif not pinned and capturing.value:
            raise RuntimeError(f"a captured copy of pageable memory: {_asked()}")
        if not pinned and _watched is not None:
            _watched.pageable.append(f"a copy {way} pageable memory: {_asked()}")
        own = [host(t) if t.is_cuda else t for t in (dst, src)]
        if _is_captured(dst.device if dst.is_cuda else src.device):
            captured_ops.value += 1
            _open_tapes[-1].append((self.op, own, {}, [None]))
        else:
            own[0].copy_(own[1])
        return dst


# --- captured graphs ----------------------------------------


def _replay(number):
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
        for function, args, kwargs, made in _tapes[number]:
            out = _flat(function(*args, **kwargs))
            for old, new in zip(made, out, strict=len(made) > 0):
                if old is not None:
                    old.copy_(new)


def _on_event(what, number):
    try:
        if what == 1:
            _open_tapes.append(_tapes.setdefault(number, []))
        elif what == 2:
            _open_tapes.pop()
        else:
            _replay(number)
    except BaseException:
        traceback.print_exc()
        os._exit(97)  # no exception passes through C


_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_ulonglong)(_on_event)
_libraries: list = []


def install():
    """Replace torch's CUDA kernels, NCCL by gloo, and Inductor by aot_eager.

    Raises:
        SystemExit: this torch lacks what is used of it; says what to mend.
    """
    missing = [name for name in _PRIVATE if not hasattr(torch._C, name)]
    if missing:
        sys.exit(
            f"simulated GPU: torch {torch.__version__} has no torch._C.{missing[0]}: mend "
            f"{__file__}, or use it with torch 2.14"
        )
    library.sim_set_callback(_callback)
    own = torch.library.Library("aten", "IMPL")
    _libraries.append(own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for full in sorted(torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")):
            space, _, name = full.partition("::")
            base, _, overload = name.partition(".")
            op = getattr(getattr(aten, base, None), overload or "default", None)
            if space != "aten" or name in NATIVE or op is None:
                continue
            kernel = (Copy if name == "copy_" else Kernel)(name, op, FUNCTIONS.get(name))
            own.impl(name, _function(kernel), "CUDA", allow_override=True)
        own.impl("copy_", _function(Copy("copy_", aten.copy_.default)), "CUDA", allow_override=True)
    compile_ = torch.compile

    def compiled(model=None, **options):
        return compile_(model, **{**options, "backend": "aot_eager"})

    torch.compile = compiled
    import simulated_nccl

    simulated_nccl.install()


def _function(kernel):
    return lambda *args, **kwargs: kernel(*args, **kwargs)


install()
