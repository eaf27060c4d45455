"""Samples of one split of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shards.errors import UserError
from shards.order import Ids

if TYPE_CHECKING:
    from shards.reader import Dataset, Samples


class Split:
    """Samples of one split, or some of them; positions count from 0 within it.

    Attributes:
        dataset: the dataset that it belongs to.
        name: "train", "val" or "test".
        ids: int64 [n], row in the dataset of each position.
        labels: int64 [n], class index of each position.
    """

    def __init__(self, dataset: Dataset, name: str, ids: Ids) -> None:
        self.dataset = dataset
        self.name = name
        self.ids = ids
        self.labels: Ids = dataset.labels[ids]

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self)} samples of {str(self.dataset.path)!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return Split, (self.dataset, self.name, self.ids)

    def take(self, positions: Sequence[int] | Ids) -> Split:
        """Returns the samples at these positions."""
        return Split(self.dataset, self.name, self.ids[np.asarray(positions, dtype=np.int64)])

    def where(self, column: str, value: str) -> Split:
        """Returns the samples that have this value in a column such as "device".

        Raises:
            UserError: there is no such column.
        """
        return self.take(np.flatnonzero(self.column(column) == value))

    @property
    def keys(self) -> list[str]:
        """Name of each sample, unique in the dataset."""
        return [str(key) for key in self._texts("key")]

    def column(self, name: str) -> NDArray[np.str_]:
        """Returns the column "recording" or a group such as "device": a str array [n].

        Raises:
            UserError: there is no such column.
        """
        return self._texts(name)

    def _texts(self, column: str) -> NDArray[np.str_]:
        if not len(self):
            return self.dataset.texts(column, 0, 0)
        first, last = int(self.ids.min()), int(self.ids.max())
        return self.dataset.texts(column, first, last - first + 1)[self.ids - first]

    def fetch(
        self, positions: Sequence[int] | NDArray[np.integer], out: Samples | None = None
    ) -> Samples:
        """Reads samples by their position in the split; see `Dataset.fetch`.

        Raises:
            UserError: a position is out of range; see also `Dataset.fetch`.
        """
        places = np.asarray(positions, dtype=np.int64)
        if len(places) and not (places.min() >= 0 and places.max() < len(self)):
            wrong = places[(places < 0) | (places >= len(self))][0]
            raise UserError(
                f"the split {self.name} of {self.dataset.path} has no position {wrong}: "
                f"positions go from 0 to {len(self) - 1}"
            )
        return self.dataset.fetch(self.ids[places], out)
