"""Budgets: limits on the cost of the pruned network, as they are written. Importable without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from cpprune.evaluation.dtypes import BYTES_PER_PARAMETER

if TYPE_CHECKING:
    from cpprune.export.metadata import Precision


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        text: as it was written.
        quantity: "params" (bytes are parameters × the dtype's width), "macs", "operations", "exported@"
            or "ram@" and a precision, or "latency".
        bound: the most there may be; of latency, in milliseconds.
    """

    text: str
    quantity: str
    bound: float

    @property
    def exported(self) -> Precision | None:
        """Precision of the export whose size is limited, if it is."""
        return self._precision("exported")

    @property
    def ram(self) -> Precision | None:
        """Precision of the export in C whose memory is limited, if it is."""
        return self._precision("ram")

    @property
    def measured(self) -> bool:
        """Whether a network has to be made to know, rather than foreseen from its widths."""
        return self.quantity == "latency" or self.ram is not None

    def text_of(self, value: float) -> str:
        """Return how much of the quantity there is, for messages."""
        if self.quantity == "latency":
            return f"{value:.3g}ms here"
        unit = "bytes" if self.exported or self.ram else self.quantity
        return f"{value:,.0f} {unit}"

    def _precision(self, name: str) -> Precision | None:
        quantity, _, precision = self.quantity.partition("@")
        return cast("Precision", precision) if quantity == name else None


NUMBER = r"[0-9.]+(?:[eE][+-]?[0-9]+)?"
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def parse_budget(text: str) -> list[Limit]:
    """Read limits, such as "params<=47028,macs<=10e6,bytes<=128000@fp16,latency<=3ms".

    Raises:
        ValueError: it says something else; the message names the part.
    """
    return [_parse_limit(part.strip()) for part in text.split(",")]


def _parse_limit(text: str) -> Limit:
    count = re.fullmatch(rf"(params|macs|operations)\s*<=\s*({NUMBER})", text)
    dtypes = "|".join(BYTES_PER_PARAMETER)
    size = re.fullmatch(rf"(bytes|exported)\s*<=\s*({NUMBER})@({dtypes})", text)
    memory = re.fullmatch(rf"ram\s*<=\s*({NUMBER})@(fp32|int8)", text)
    time = re.fullmatch(rf"latency\s*<=\s*({NUMBER})\s*({'|'.join(MILLISECONDS)})", text)
    try:
        if count and float(count[2]) >= 1:
            return Limit(text, count[1], float(count[2]))
        if size and float(size[2]) >= 1 and size[1] == "exported":
            return Limit(text, f"exported@{size[3]}", float(size[2]))
        if size and float(size[2]) >= 1:
            return Limit(text, "params", float(size[2]) // BYTES_PER_PARAMETER[size[3]])
        if memory and float(memory[1]) >= 1:
            return Limit(text, f"ram@{memory[2]}", float(memory[1]))
        if time and float(time[1]) > 0:
            return Limit(text, "latency", float(time[1]) * MILLISECONDS[time[2]])
    except ValueError:  # such as 1.2.3
        pass
    raise ValueError(
        f"prune.budget: {text!r} is no limit; write params<=47028, macs<=10e6, operations<=10e6, "
        f"bytes<=128000@fp16, exported<=60000@int8 (dtypes: {', '.join(BYTES_PER_PARAMETER)}), "
        "ram<=200000@int8 (fp32, int8) or "
        f"latency<=3ms (units: {', '.join(MILLISECONDS)}), separated by commas"
    )
