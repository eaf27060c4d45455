"""The exception for mistakes that the user can correct, and others' exceptions in its messages."""

from shards.credentials import without_credentials


class UserError(ValueError):
    """Something that the user provided is wrong.

    The message is one line that names what is wrong and says what to do. The command line prints it
    without a traceback and exits with status 2. Credentials in URLs are removed from it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


def one_line(error: BaseException, most: int = 200) -> str:
    """Return kind and text of an exception of others' code, in one line of at most `most` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]


InputError = UserError  # former name, kept for one version
