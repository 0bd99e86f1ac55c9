"""What a check of the doctor raises: a module of its own, so that the doctor and its checks import no circle."""


class CheckFailed(Exception):
    """The message says what is wrong, and what to do about it."""
