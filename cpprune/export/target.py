"""The registry of export targets: a module of `cpprune.export.targets` adds one with `@target`.

    @target("NAME", help="one line", precisions=("fp32",), suffix=".ext", needs=("package",))
    def _to_name(job: Job) -> Product: ...

Its module imports what is heavy inside the function, so that `--help` needs none of it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cpprune.export.targets
from cpprune.evaluation.dcase import Complexity
from cpprune.models.classifier import Classifier
from shards.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from cpprune.export.metadata import Input, Metadata, Precision
    from cpprune.models.artifact import Model
    from shards.files.ownership import Kind


CHECK = "check.json"  # in an exported folder: how --check measured it


class Exported(Classifier, Protocol):
    """An exported model that can be run here, and measured as model folders are."""

    def complexity(self) -> Complexity:
        """Return parameters, macs, bytes and DCASE's limits of what was exported, JSON-ready."""


class ExportedFile(Exported, Protocol):
    """An exported model that was read back."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the network."""

    def about(self) -> dict[str, object]:
        """Return its metadata, JSON-ready."""


class Load(Protocol):
    """Reads an exported file back, to be run on a number of threads (None: the default)."""

    def __call__(self, path: Path, threads: int | None = None) -> ExportedFile:
        """Return the model."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be exported, and how.

    Attributes:
        model: the trained model, on the CPU.
        input: what the exported model takes.
        precision: of the weights.
        weights_sha256: of the model folder's weights.
        calibration: for int8: clips to calibrate with, as shards store them; None otherwise, and for a
            fake-quantised network, which knows its ranges.
        keep_float: for int8: names of layers that stay in float32, if the target can keep any.
        clips: a few clips to try it with, as shards store them.
        run: whether `Product.exported` is needed.
        trial: whether it is made to be timed here and thrown away: its size and its warnings are not
            needed.
    """

    model: Model
    input: Input
    precision: Precision
    weights_sha256: str
    calibration: Tensor | None
    keep_float: tuple[str, ...]
    clips: Tensor
    run: bool
    trial: bool = False

    def calibration_features(self) -> NDArray[np.float32]:
        """Return the network's inputs [clips, *input_shape] for the clips to calibrate with."""
        import torch

        assert self.calibration is not None
        with torch.no_grad():
            return self.model.features(self.calibration).numpy()

    def metadata(self) -> Metadata:
        """Return what an exported model says of itself."""
        from cpprune.export.metadata import describe

        return describe(self.model, self.input, self.precision, self.weights_sha256)


@dataclass(frozen=True, kw_only=True)
class Product:
    """What an export made.

    Attributes:
        files: contents by name, if the target is a folder; otherwise of the one file.
        complexity: parameters, macs, bytes and DCASE's limits; JSON-ready.
        exported: the same model, to be run here on one thread; None if that was not asked for.
        summary: what it costs, in one line.
    """

    files: Mapping[str, bytes]
    complexity: Complexity
    exported: Exported | None
    summary: str


def file_summary(size: Mapping[str, int]) -> str:
    """Return what a file costs, in one line, from its `bytes`."""
    return (
        f"{size['file']:,} bytes, of these {size['network']:,} the network and "
        f"{size['front_end']:,} the front end"
    )


Make = Callable[[Job], Product]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of exported model.

    Attributes:
        name: of `--to`.
        help: what is written, in one line.
        make: exports a model.
        precisions: that it can have; the first is the default.
        suffix: that the name of its file must have; empty if it is a folder.
        folder: the kind of folder that it is; None if it is a file.
        needs: packages, by the names that are imported.
        extra: of this project, that installs them.
        int8: which graph of `quantize_int8` its int8 is; None if it quantises otherwise.
        as_trained: whether it can round as fake-quantised networks do, so that those can be exported.
        keeps_float: whether layers can stay in float32 when it quantises after training.
        load: reads an exported model back; None if that cannot be.
    """

    name: str
    help: str
    make: Make
    precisions: tuple[Precision, ...]
    suffix: str = ""
    folder: Kind | None = None
    needs: tuple[str, ...] = ()
    extra: str = "export"
    int8: Literal["qdq", "integer"] | None = None
    as_trained: bool = False
    keeps_float: bool = False
    load: Load | None = None

    def require(self, what: str) -> None:
        """Raise UserError that says how to install the packages unless they are there.

        Args:
            what: needs them.
        """
        if missing := [name for name in self.needs if find_spec(name) is None]:
            raise UserError(
                f"{what} needs {', '.join(missing)}: pip install 'cpprune[{self.extra}]'"
            )


_registered: dict[str, Target] = {}


def target(name: str, **about: Any) -> Callable[[Make], Make]:
    """Register the decorated function as an export target; the keywords are those of `Target`."""

    def register(make: Make) -> Make:
        _registered[name] = Target(name=name, make=make, **about)
        return make

    return register


@cache
def targets() -> Mapping[str, Target]:
    """Return all targets by name. Imports the modules of `cpprune.export.targets`, which are light."""
    for module in pkgutil.iter_modules(cpprune.export.targets.__path__, "cpprune.export.targets."):
        import_module(module.name)
    return dict(sorted(_registered.items()))
