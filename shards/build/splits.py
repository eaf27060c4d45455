"""Splits: which unit (location, recording or file) is in which split, as pure functions of the seed.

All clips of a unit are in one split.
"""

import hashlib
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

from shards.errors import UserError
from shards.manifest import SPLITS

MOST_SWAPS = 100


def shuffled(units: Iterable[str], seed: int) -> list[str]:
    """Returns the units in an order that depends only on the seed and their names."""
    return sorted(set(units), key=lambda unit: hashlib.sha256(f"{seed}/{unit}".encode()).digest())


def carve_validation(
    units: Sequence[str], labels: Sequence[int], weights: Sequence[int], fraction: float, seed: int
) -> set[str]:
    """Chooses the training units that become the validation split.

    For each class, units are taken in the order of `shuffled` until `fraction` of the class's clips is
    reached. A unit that would exceed twice that is skipped; if all would, the smallest is taken. At
    least one unit of every class stays in training.

    Args:
        units: unit of each training item.
        labels: class index of each item.
        weights: number of clips of each item.
        fraction: fraction of the clips of each class, in [0, 1).
        seed: random seed.

    Returns:
        The validation units.
    """
    clips = _clips_of(units, labels, weights)
    left = {label: len(of_class) for label, of_class in clips.items()}
    classes_of = _classes_of(units, labels)
    taken: set[str] = set()
    for label in sorted(clips):
        of_class = clips[label]
        wanted = fraction * sum(of_class.values())
        have = sum(of_class[unit] for unit in taken & of_class.keys())
        free = shuffled(of_class.keys() - taken, seed)
        fitting = [unit for unit in free if of_class[unit] <= 2 * wanted]
        for unit in fitting or sorted(free, key=lambda unit: of_class[unit])[:1]:
            if have >= wanted:
                break
            fits = not fitting or have + of_class[unit] <= 2 * wanted
            if fits and all(left[other] > 1 for other in classes_of[unit]):
                taken.add(unit)
                have += of_class[unit]
                for other in classes_of[unit]:
                    left[other] -= 1
    return taken


def draw_splits(
    units: Sequence[str],
    labels: Sequence[int],
    weights: Sequence[int],
    fractions: Sequence[float],
    seed: int,
) -> dict[str, str]:
    """Divides units among train, val and test, class by class, by given fractions of the clips.

    Every class comes as close to the fractions as its units allow, and has at least one unit in each
    split whose fraction is not zero, if it has enough of them (training first, then test).

    Args:
        units: unit of each item.
        labels: class index of each item.
        weights: number of clips of each item.
        fractions: fractions of train, val and test; their sum is 1.
        seed: random seed.

    Returns:
        The split of each unit.
    """
    clips = _clips_of(units, labels, weights)
    split_of: dict[str, str] = {}
    for label in sorted(clips):
        of_class = clips[label]
        total = sum(of_class.values())
        need = {split: part * total for split, part in zip(SPLITS, fractions, strict=True)}
        have: dict[str, list[str]] = {split: [] for split in SPLITS}
        for unit in of_class.keys() & split_of.keys():  # it has clips of an earlier class too
            need[split_of[unit]] -= of_class[unit]
            have[split_of[unit]].append(unit)
        free = [unit for unit in shuffled(of_class, seed) if unit not in split_of]
        dealt = _deal([of_class[unit] for unit in free], need, fractions, have)
        split_of.update(zip(free, dealt, strict=True))
    return split_of


def joined(units: Sequence[str], copies: Iterable[Sequence[int]]) -> list[str]:
    """Returns the unit of each item after merging units that contain copies of the same file.

    Args:
        units: unit of each item.
        copies: groups of indices of items that are copies.
    """
    above: dict[str, str] = {}

    def root(unit: str) -> str:
        while unit in above:
            unit = above[unit]
        return unit

    for places in copies:
        first, *others = sorted({root(units[place]) for place in places})
        above.update(dict.fromkeys(others, first))
    return [root(unit) for unit in units]


def refuse_parted(column: str, values: Iterable[str], splits: Iterable[str]) -> None:
    """Checks that no unit is in two splits.

    Raises:
        UserError: a unit is; the message names the first.
    """
    seen: dict[str, str] = {}
    for value, split in zip(values, splits, strict=True):
        first = seen.setdefault(value, split)
        if first != split:
            raise UserError(
                f"the {column} {value!r} is in two splits ({first} and {split}); "
                "clips of one must not part: put them into one split"
            )


def _deal(
    weights: Sequence[int],
    need: dict[str, float],
    fractions: Sequence[float],
    have: Mapping[str, Sequence[str]],
) -> list[str]:
    """Returns the split of each free unit of a class; `need` is how many clips each split lacks.

    Greedy: each unit goes to the split that lacks most. Units that are large compared with the smallest
    need are assigned first, in falling order of size, so that the smaller ones even them out.
    """
    wanted = [split for split, part in zip(SPLITS, fractions, strict=True) if part > 0]
    lacking = {split: need[split] for split in wanted}
    large = min(lacking.values()) / 4
    first = sorted(
        range(len(weights)), key=lambda place: -weights[place] if weights[place] > large else 0
    )
    got: dict[str, list[int]] = {split: [] for split in wanted}
    for place in first:
        # Rounded, so that the last bit does not decide a tie.
        split = max(wanted, key=lambda name: round(lacking[name], 6))
        got[split].append(place)
        lacking[split] -= weights[place]
    _even_out(weights, lacking, got)
    for split in ("train", "test", "val"):
        if split not in wanted or got[split] or have[split]:
            continue
        rich = max(wanted, key=lambda name: len(got[name]) + len(have[name]))
        if got[rich] and len(got[rich]) + len(have[rich]) > 1:
            lightest = min(reversed(got[rich]), key=lambda place: weights[place])
            got[rich].remove(lightest)
            got[split].append(lightest)
    # Units of equal weight are interchangeable: training gets the first ones.
    dealt = [""] * len(weights)
    number = {split: Counter(weights[place] for place in places) for split, places in got.items()}
    for place, weight in enumerate(weights):
        split = next(name for name in wanted if number[name][weight])
        number[split][weight] -= 1
        dealt[place] = split
    return dealt


def _even_out(weights: Sequence[int], lacking: dict[str, float], got: dict[str, list[int]]) -> None:
    """Moves or swaps units between two splits while that brings both closer to their fractions."""
    for _ in range(MOST_SWAPS):
        best: tuple[float, str, str, int, int | None] | None = None
        for rich, poor in permutations(got, 2):
            much = (lacking[poor] - lacking[rich]) / 2
            if much <= 0:
                continue
            # One unit of each weight is enough; None: a move without a return.
            back = {0: None} | {weights[place]: place for place in reversed(got[poor])}
            known = sorted(back)
            for weight, place in {weights[p]: p for p in reversed(got[rich])}.items():
                for other in _nearest(known, weight - much):
                    moved = weight - other
                    gain = moved * (2 * much - moved)  # half the decrease of the sum of squares
                    if gain > 1e-6 and (best is None or gain > best[0] + 1e-6):
                        best = gain, rich, poor, place, back[other]
        if best is None:
            return
        _, rich, poor, place, returned = best
        _move(place, rich, poor, weights, lacking, got)
        if returned is not None:
            _move(returned, poor, rich, weights, lacking, got)


def _move(
    place: int,
    source: str,
    target: str,
    weights: Sequence[int],
    lacking: dict[str, float],
    got: dict[str, list[int]],
) -> None:
    got[source].remove(place)
    got[target].append(place)
    lacking[source] += weights[place]
    lacking[target] -= weights[place]


def _nearest(known: Sequence[int], value: float) -> Sequence[int]:
    place = bisect(known, value)
    return known[max(0, place - 1) : place + 1]


def _clips_of(
    units: Sequence[str], labels: Sequence[int], weights: Sequence[int]
) -> dict[int, dict[str, int]]:
    clips: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for unit, label, weight in zip(units, labels, weights, strict=True):
        clips[label][unit] += weight
    return clips


def _classes_of(units: Sequence[str], labels: Sequence[int]) -> Mapping[str, set[int]]:
    classes: dict[str, set[int]] = defaultdict(set)
    for unit, label in zip(units, labels, strict=True):
        classes[unit].add(label)
    return classes
