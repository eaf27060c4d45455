"""Names that can be written down: a file may be called by bytes that no text can hold."""

import unicodedata

# Controls, lone surrogates (how Python reads bytes that are not UTF-8), line and paragraph separators.
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}


def printable(name: str) -> str:
    r"""Returns a name as one line of valid Unicode, as `ls -b` and bash's `$'…'` write it.

    A byte that is not UTF-8 becomes `\xe9`, a control character `\x0a`, a backslash `\\`; the rest stays
    as it is. Two names never become one.
    """
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(_escaped(character) for character in name)


def _escaped(character: str) -> str:
    if character == "\\":
        return r"\\"
    if unicodedata.category(character) not in _UNPRINTABLE:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return rf"\x{code - 0xDC00:02x}"
    return rf"\x{code:02x}" if code < 0x80 else rf"\u{code:04x}"
