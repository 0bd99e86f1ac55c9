"""server.py's console: the signals that stop it, and a status line that changes."""

import signal
import sys
from typing import Any


class Stopped(BaseException):
    """Raised by Ctrl-C, or by a signal that asks for an orderly end."""


def stop_on_signals() -> None:
    """Turns the signals that ask for an end into Stopped, once: a second one does not disturb the end."""

    def stop(number: int, _: object) -> None:
        on_signals(signal.SIG_IGN)
        raise Stopped

    on_signals(stop)


def on_signals(handler: Any) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


class StatusLine:
    """One line that is overwritten when it changes; on a pipe, a new line for each change."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, text: str) -> None:
        if sys.stdout.isatty():
            print(f"\r\033[K{text}", end="", flush=True)
        elif text.partition(" (")[0] != self._last.partition(" (")[0]:
            print(text, flush=True)
        self._last = text

    def end(self) -> None:
        if sys.stdout.isatty() and self._last:
            print("\r\033[K", end="", flush=True)
