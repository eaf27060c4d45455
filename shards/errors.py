"""The exception for mistakes that the user can correct."""

from shards.credentials import without_credentials


class UserError(ValueError):
    """Something that the user provided is wrong.

    The message is one line that names what is wrong and says what to do. The command line prints it
    without a traceback and exits with status 2. Credentials in URLs are removed from it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


InputError = UserError  # former name, kept for one version
