"""The one exception for what a user can mend."""

from shards.credentials import without_credentials


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line that names what is wrong and says what to do. The command line prints it
    without a traceback and ends with exit status 2. Passwords in URLs are left out of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))
