"""What people call their splits, as folders or in a column of a table."""

from collections.abc import Collection, Mapping

from shards.errors import UserError
from shards.manifest import SPLITS
from shards.sources.names import printable

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# Validation beside a training split; without one, what is developed with, as in the DCASE challenges.
_DEVELOPMENT = ("dev", "devel", "development")


def is_split_name(name: str) -> bool:
    """Tells whether people call a split so."""
    return name.lower() in {*_DEVELOPMENT, *(word for words in _WORDS.values() for word in words)}


def meaning(what: str, splits: Mapping[str, str]) -> tuple[str, ...]:
    """Returns a note of how names were understood, unless they are the splits' own."""
    if all(name.lower() == split for name, split in splits.items()):
        return ()
    listed = ", ".join(f"{printable(name)} → {split}" for name, split in sorted(splits.items()))
    return (f"{what}: {listed}",)


def split_names(names: Collection[str], where: str) -> Mapping[str, str]:
    """Returns the split that each of the names means, in any case; names of no split are left out.

    Raises:
        UserError: if two of them mean the same split; the message begins with `where`.
    """
    words = {word: split for split, of_split in _WORDS.items() for word in of_split}
    trained = any(words.get(name.lower()) == "train" for name in names)
    words |= dict.fromkeys(_DEVELOPMENT, "val" if trained else "train")
    found = {name: words[name.lower()] for name in names if name.lower() in words}
    for split in SPLITS:
        same = sorted(name for name, of in found.items() if of == split)
        if len(same) > 1:
            raise UserError(
                f"{where}: {same[0]!r} and {same[1]!r} both mean the {split} split; "
                "rename one or put them together"
            )
    return found
