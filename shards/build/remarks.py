"""Remarks on a plan, known before decoding: how the source was read, and what is wrong with it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from shards.audio.formats import INSTALL
from shards.build.options import BuildOptions
from shards.build.scan import Scan
from shards.manifest import SPLITS
from shards.sources.source import Item, Source
from shards.sources.walk import NEEDS_FFMPEG, NO_CLASS, NO_SPLIT

# Difference between requested and actual fractions of a split from which on a warning is given.
FAR = 0.05
DIGITS = "0123456789"
MOST_NAMES = 5


class Remarks(NamedTuple):
    """Notes on how the source was read; warnings of what is wrong with it, and what to do."""

    notes: list[str]
    warnings: list[str]


def remarks(
    items: Sequence[Item],
    units: Sequence[str],
    found: Scan,
    source: Source,
    options: BuildOptions,
    *,
    drawn: bool,
    lost: Sequence[str],
) -> Remarks:
    """Returns the remarks on a plan.

    Args:
        items: the items with their splits.
        units: the unit of each item, which is not divided among splits.
        found: scan of the files.
        source: source of the items.
        options: options of the build.
        drawn: whether the splits were drawn at random rather than given.
        lost: classes that were left out.
    """
    notes = list(source.notes)
    warnings: list[str] = []
    if lost:
        warnings.append(f"left out, with no file that can be used: {_names(lost, 'class')}")
    warnings += _unused(source)
    warnings += source.split_warnings if drawn else ()
    clips = Counter[tuple[str, int]]()
    for item, count in zip(items, found.clips_of, strict=True):
        clips[item.split, item.label] += count
    splits = [split for split in SPLITS if any(of == split for of, _ in clips)]
    alone = source.unit == "file"
    how = f"by {source.unit}, seed {options.seed}"
    if drawn:
        got = _shares([item.split for item in items], found.clips_of)
        notes.append(f"the splits were drawn {how}: {_percent(got)}")
        kept = (
            "copies of it too; nothing else does (see --keep-together)"
            if alone
            else "copies of its files too"
        )
        notes.append(f"the clips of one {source.unit} stay together, {kept}")
        if max(abs(a - b) for a, b in zip(got, options.fractions, strict=True)) > FAR:
            warnings.append(_far_from(got, units, found.clips_of, options))
    elif "val" in splits and not any(item.split == "val" for item in found.items):
        notes.append(f"the splits are those of the source; val was carved out of train {how}")
    else:
        notes.append("the splits are those of the source")
    warnings += _missing(clips, splits, source, options, drawn=drawn)
    warnings += _copies(items, found.copies, source)
    if alone:
        warnings += _pieces(items, source.together_hint) if source.together_hint else []
    else:
        unknown = sum(not item.together for item in items)
        if unknown:
            notes.append(f"{unknown:,} files have no {source.unit}; each of them is on its own")
    return Remarks(notes, warnings)


def _unused(source: Source) -> list[str]:
    lines = []
    kinds = {reason: n for reason, n in source.aside.items() if reason.startswith(NEEDS_FFMPEG)}
    if kinds:
        endings = ", ".join(sorted(reason[len(NEEDS_FFMPEG) :].strip(" ()") for reason in kinds))
        files = _count(sum(kinds.values()), "audio file")
        lines.append(f"{files} left aside, for ffmpeg is needed to read {endings}: {INSTALL}")
    for reason in (NO_CLASS, NO_SPLIT):
        if source.aside.get(reason):
            lines.append(f"{_count(source.aside[reason], 'audio file')} not used: {reason}")
    return lines


def _shares(splits: Sequence[str], clips_of: Sequence[int]) -> list[float]:
    have = Counter[str]()
    for split, count in zip(splits, clips_of, strict=True):
        have[split] += count
    return [have[split] / have.total() for split in SPLITS]


def _percent(shares: Sequence[float]) -> str:
    return f"{'/'.join(f'{100 * share:.0f}' for share in shares)} % of the clips"


def _far_from(
    got: Sequence[float], units: Sequence[str], clips_of: Sequence[int], options: BuildOptions
) -> str:
    weight = Counter[str]()
    for unit, count in zip(units, clips_of, strict=True):
        weight[unit] += count
    largest, most = max(weight.items(), key=lambda pair: (pair[1], pair[0]))
    share = most / weight.total()
    why = f"{largest} alone has {share:.0%}" if share > FAR else "some classes have too few files"
    asked = "/".join(f"{100 * share:.0f}" for share in options.fractions)
    return f"train/val/test have {_percent(got)} and not {asked}, for {why}; add recordings"


def _missing(
    clips: Counter[tuple[str, int]],
    splits: Sequence[str],
    source: Source,
    options: BuildOptions,
    *,
    drawn: bool,
) -> list[str]:
    lines = []
    if len(source.classes) == 1:
        lines.append(
            f"{source.classes[0]} is the only class: a network has nothing to tell apart; add another"
        )
    without = {
        "train": "nothing can be trained on this dataset",
        "val": "training cannot tell which epoch is best",
        "test": "there is nothing to measure a trained network on",
    }
    for split, consequence in without.items():
        absent = [name for label, name in enumerate(source.classes) if not clips[split, label]]
        if split not in splits:
            remedy = _remedy(split, options, drawn=drawn)
            lines.append(f"there is no {split} split: {consequence}; {remedy}")
        elif absent:
            lines.append(f"{split} has no clips of {_names(absent, 'class')}; add recordings of it")
    return lines


def _remedy(split: str, options: BuildOptions, *, drawn: bool) -> str:
    if drawn:
        share = dict(zip(SPLITS, options.fractions, strict=True))[split]
        return "add recordings" if share else f"give {split} a share in --fractions"
    if split == "val" and not options.val_fraction:
        return "raise --val-fraction, or name clips for it"
    return "add recordings" if split == "val" else f"name clips for {split}"


def _copies(items: Sequence[Item], copies: Sequence[Sequence[int]], source: Source) -> list[str]:
    lines = []
    parted = [same for same in copies if len({items[place].split for place in same}) > 1]
    if parted:
        one, other = _differ([(items[place].split, items[place].name) for place in parted[0]])
        lines.append(
            f"{_count(len(parted), 'file')} with copies in several splits, so that figures look better "
            f"than they are: {one[1]} ({one[0]}) and {other[1]} ({other[0]}) hold the same "
            "bytes; remove one"
        )
    named = [same for same in copies if len({items[place].label for place in same}) > 1]
    if named:
        labels = [(source.classes[items[place].label], items[place].name) for place in named[0]]
        one, other = _differ(labels)
        lines.append(
            f"{_count(len(named), 'file')} with a copy in another class: {one[1]} ({one[0]}) and "
            f"{other[1]} ({other[0]}) hold the same bytes, so one label is wrong; remove one"
        )
    return lines


def _differ(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], tuple[str, str]]:
    """Returns the first pair, and the first pair with another first element."""
    return pairs[0], next(pair for pair in pairs if pair[0] != pairs[0][0])


def _pieces(items: Sequence[Item], remedy: str) -> list[str]:
    """Returns a warning if many names look like segments of longer recordings."""
    of_stem: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        whole = _whole(item.name)
        if whole:
            of_stem[whole].append(item)
    several = [same for same in of_stem.values() if len(same) > 1]
    pieces = sum(map(len, several))
    if len(several) < 2 or 10 * pieces < len(items):
        return []
    # Two segments in different splits are the best example.
    parted = [same for same in several if len({item.split for item in same}) > 1]
    example = (parted or several)[0]
    one = example[0]
    other = next((item for item in example if item.split != one.split), example[1])
    return [
        f"{pieces:,} names look like pieces of recordings, such as {one.name} (in {one.split}) and "
        f"{other.name} (in {other.split}), and nothing keeps those of one together; use {remedy}"
    ]


def _whole(name: str) -> str:
    """Returns what precedes the last number (rec00 of rec00_0.wav) if it has a number too, else ""."""
    stem = name.rpartition(".")[0]
    head = stem.rstrip(DIGITS)
    whole = head.rstrip("-_. ")
    base = whole.rpartition("/")[2]
    return whole if stem != head != whole and any(sign in DIGITS for sign in base) else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _names(names: Sequence[str], what: str) -> str:
    listed = ", ".join(names[:MOST_NAMES])
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"the {what}{'es' if len(names) > 1 else ''} {listed}{more}"
