"""The one error a user can cause."""


class CascError(Exception):
    """What is wrong, where, with which value, and what to do about it: one sentence for the user.

    The command line prints it without a traceback and ends with exit status 1.
    """
