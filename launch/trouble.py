"""What a check of the doctor raises: a module of its own, so that the doctor and its checks import no circle."""

from handlers.errors import OperatorError


class CheckFailed(OperatorError):
    """A check found something that keeps the server from serving."""
