"""Budgets: limits on the cost of the pruned network, as they are written. Importable without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from cpprune.evaluation.dtypes import BYTES_PER_PARAMETER

if TYPE_CHECKING:
    from cpprune.export.metadata import Precision

MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What a budget can limit.

    Attributes:
        examples: limits on it, as they are written.
        label: of its values in tables.
        unit: of its values in messages.
        units: that may follow the number, and how much each is.
        forms: returns what may follow "@"; "" where it may be left out.
        key: of its values by form in `prune --dry-run --json`; empty if that holds them anyway.
        measured: whether a network has to be made to know it, rather than foreseen from its widths.
        at_peak: whether only the layers at a peak need to get narrower.
    """

    examples: tuple[str, ...]
    label: str = ""
    unit: str = "bytes"
    units: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})
    forms: Callable[[], Sequence[str]] = lambda: ("",)
    key: str = ""
    measured: bool = False
    at_peak: bool = False

    def text_of(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{value:.3g}ms here" if self.unit == "ms" else f"{value:,.0f} {self.unit}"


def _dtypes() -> Sequence[str]:
    return tuple(BYTES_PER_PARAMETER)


def _precisions_of(target: str) -> Callable[[], Sequence[str]]:
    def precisions() -> Sequence[str]:
        from cpprune.export.target import targets

        return targets()[target].precisions

    return precisions


def _exports() -> Sequence[str]:
    """Return every target and precision of `cpprune export`, after that for the network in torch."""
    from cpprune.export.target import targets

    return "", *(f"{name}-{p}" for name, target in targets().items() for p in target.precisions)


QUANTITIES = {
    "params": Quantity(examples=("params<=47028",), unit="params"),
    "macs": Quantity(examples=("macs<=10e6",), unit="macs"),
    "operations": Quantity(examples=("operations<=10e6",), unit="operations"),
    "bytes": Quantity(examples=("bytes<=128000@fp16",), forms=_dtypes),
    "exported": Quantity(
        examples=("exported<=60000@int8",),
        label="bytes exported",
        forms=_precisions_of("onnx"),
        key="exported_bytes",
    ),
    "flash": Quantity(
        examples=("flash<=60000@int8",),
        label="bytes of flash",
        forms=_precisions_of("c"),
        key="flash_bytes",
        measured=True,
    ),
    "ram": Quantity(
        examples=("ram<=200000@int8",),
        label="bytes of RAM",
        forms=_precisions_of("c"),
        key="ram_bytes",
        measured=True,
        at_peak=True,
    ),
    "latency": Quantity(
        examples=("latency<=3ms", "latency<=3ms@onnx-int8"),
        label="latency in ms",
        unit="ms",
        units=MILLISECONDS,
        forms=_exports,
        key="exported_latency_ms",
        measured=True,
    ),
}


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        text: as it was written.
        quantity: a key of QUANTITIES; where it has forms, "@" and one of them unless that is "". Bytes
            are "params": parameters × the dtype's width.
        bound: the most there may be; of latency, in milliseconds.
    """

    text: str
    quantity: str
    bound: float

    @property
    def kind(self) -> str:
        """The quantity without its form."""
        return self.quantity.partition("@")[0]

    @property
    def form(self) -> str:
        """What follows "@": a precision, or a target and a precision; empty if nothing does."""
        return self.quantity.partition("@")[2]

    @property
    def about(self) -> Quantity:
        """What the quantity is."""
        return QUANTITIES[self.kind]

    @property
    def precision(self) -> Precision:
        """The form, where it is a precision of an export."""
        return cast("Precision", self.form)

    @property
    def exported(self) -> Precision | None:
        """Precision of the export whose size is limited, if it is."""
        return self.precision if self.kind == "exported" else None

    @property
    def measured(self) -> bool:
        """Whether a network has to be made to know, rather than foreseen from its widths."""
        return self.about.measured

    def text_of(self, value: float) -> str:
        """Return how much of the quantity there is, for messages."""
        return self.about.text_of(value)


LIMIT = re.compile(r"(\w+)\s*<=\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-z]*)(?:@([\w-]+))?")


def parse_budget(text: str) -> list[Limit]:
    """Read limits, such as "params<=47028,macs<=10e6,bytes<=128000@fp16,latency<=3ms".

    Raises:
        ValueError: it says something else; the message names the part.
    """
    return [_parse_limit(part.strip()) for part in text.split(",")]


def _parse_limit(text: str) -> Limit:
    found = LIMIT.fullmatch(text)
    name, number, unit, form = found.groups("") if found else ("", "", "", "")
    quantity = QUANTITIES.get(name)
    if quantity is None or unit not in quantity.units or form not in quantity.forms():
        raise _no_limit(text)
    try:
        bound = float(number) * quantity.units[unit]
    except ValueError:  # such as 1.2.3
        raise _no_limit(text) from None
    if bound <= 0 or (bound < 1 and quantity.unit != "ms"):
        raise _no_limit(text)
    if name == "bytes":
        return Limit(text, "params", bound // BYTES_PER_PARAMETER[form])
    return Limit(text, f"{name}@{form}" if form else name, bound)


def _no_limit(text: str) -> ValueError:
    """Return the error of a text that is no limit; it shows how those on its quantity are written."""
    named = re.match(r"\w*", text)
    assert named is not None
    known = QUANTITIES.get(named[0])
    chosen = [known] if known else list(QUANTITIES.values())
    examples = ", ".join(example for quantity in chosen for example in quantity.examples)
    if known is None:
        return ValueError(
            f"prune.budget: {text!r} is no limit; write {examples}, or several, separated by commas"
        )
    forms = ", ".join(form for form in known.forms() if form)
    units = ", ".join(unit for unit in known.units if unit)
    hints = [f"units: {units}"] * bool(units) + [f"after @: {forms}"] * bool(forms)
    more = f" ({'; '.join(hints)})" if hints else ""
    return ValueError(f"prune.budget: {text!r} is no limit; write {examples}{more}")
