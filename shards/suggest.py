"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a word; None if none is similar."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean NAME?", to end an error message with; "" if no known name is similar."""
    near = closest(word, known)
    return f"; did you mean {near}?" if near else ""
