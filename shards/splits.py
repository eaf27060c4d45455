"""Which unit (location, recording or file) belongs to which split: pure functions of the seed.

A unit never parts: all its clips are in one split.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from shards.errors import InputError
from shards.manifest import SPLITS


def shuffled(units: Iterable[str], seed: int) -> list[str]:
    """Returns the units in an order that depends on the seed and their names alone."""
    return sorted(set(units), key=lambda unit: hashlib.sha256(f"{seed}/{unit}".encode()).digest())


def carve_validation(
    units: Sequence[str], labels: Sequence[int], weights: Sequence[int], fraction: float, seed: int
) -> set[str]:
    """Chooses the training units that become the validation split.

    Class by class, units are taken in the order of `shuffled` until `fraction` of the class's clips
    is reached. At least one unit of every class stays in training.

    Args:
        units: the unit of each training item.
        labels: the class index of each item.
        weights: the clips of each item.
        fraction: of the clips of each class, in [0, 1).
        seed: decides which.

    Returns:
        The names of the units taken.
    """
    clips: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for unit, label, weight in zip(units, labels, weights, strict=True):
        clips[label][unit] += weight
    left = {label: len(of_class) for label, of_class in clips.items()}
    classes_of = _classes_of(units, labels)
    taken: set[str] = set()
    for label in sorted(clips):
        of_class = clips[label]
        wanted = fraction * sum(of_class.values())
        have = sum(of_class[unit] for unit in taken & of_class.keys())
        for unit in shuffled(of_class.keys() - taken, seed):
            if have >= wanted:
                break
            if all(left[other] > 1 for other in classes_of[unit]):
                taken.add(unit)
                have += of_class[unit]
                for other in classes_of[unit]:
                    left[other] -= 1
    return taken


def draw_splits(
    units: Sequence[str], labels: Sequence[int], fractions: Sequence[float], seed: int
) -> dict[str, str]:
    """Divides units over train, val and test, class by class.

    Every class gets its share of units, rounded, and at least one in each split whose fraction is
    not zero, if it has enough of them (training comes first, then test).

    Args:
        units: the unit of each item.
        labels: the class index of each item.
        fractions: of train, val and test; their sum is 1.
        seed: decides which.

    Returns:
        unit to split name.
    """
    of_class: dict[int, set[str]] = defaultdict(set)
    for unit, label in zip(units, labels, strict=True):
        of_class[label].add(unit)
    split_of: dict[str, str] = {}
    for label in sorted(of_class):
        names = of_class[label]
        counts = _shares(len(names), fractions)
        free = [unit for unit in shuffled(names, seed) if unit not in split_of]
        for unit in names & split_of.keys():
            counts[split_of[unit]] = max(0, counts[split_of[unit]] - 1)
        for split in ("test", "val"):
            for _ in range(counts[split]):
                if free:
                    split_of[free.pop()] = split
        for unit in free:
            split_of[unit] = "train"
    return split_of


def refuse_parted(column: str, values: Iterable[str], splits: Iterable[str]) -> None:
    """Checks that no unit is in two splits.

    Raises:
        InputError: naming the first that is.
    """
    seen: dict[str, str] = {}
    for value, split in zip(values, splits, strict=True):
        first = seen.setdefault(value, split)
        if first != split:
            raise InputError(
                f"the {column} {value!r} is in two splits ({first} and {split}); "
                "clips of one must not part: mend the list"
            )


def _shares(count: int, fractions: Sequence[float]) -> dict[str, int]:
    exact = {split: count * part for split, part in zip(SPLITS, fractions, strict=True)}
    shares = {split: int(value + 1e-9) for split, value in exact.items()}
    by_rest = sorted(exact, key=lambda split: shares[split] - exact[split])
    for split in by_rest[: count - sum(shares.values())]:
        shares[split] += 1
    for split in ("train", "test", "val"):
        largest = max(shares, key=lambda name: shares[name])
        if exact[split] > 0 and shares[split] == 0 and shares[largest] > 1:
            shares[split] += 1
            shares[largest] -= 1
    return shares


def _classes_of(units: Sequence[str], labels: Sequence[int]) -> Mapping[str, set[int]]:
    classes: dict[str, set[int]] = defaultdict(set)
    for unit, label in zip(units, labels, strict=True):
        classes[unit].add(label)
    return classes
