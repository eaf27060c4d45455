"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line that names what is wrong and says what to do. The command line prints it
    without a traceback and ends with exit status 2.
    """
