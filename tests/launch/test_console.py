"""The status line on a terminal and on a pipe, and the signals that stop the server."""

import signal
import sys
from collections.abc import Iterator

import pytest

from launch.console import StatusLine, Stopped, stop_on_signals


@pytest.fixture
def signals() -> Iterator[None]:
    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_stops_and_a_second_one_does_not_disturb(signals: None, name: str) -> None:
    stop_on_signals()
    with pytest.raises(Stopped):
        signal.raise_signal(getattr(signal, name))
    signal.raise_signal(getattr(signal, name))


def test_a_pipe_gets_a_line_for_each_change_but_of_the_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    status = StatusLine()
    for text in ("building", "starting (1 s)", "starting (2 s)", "loading (3 s)"):
        status(text)
    status.end()
    assert capsys.readouterr().out == "building\nstarting (1 s)\nloading (3 s)\n"


def test_a_terminal_shows_one_line_that_is_gone_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status = StatusLine()
    status.end()
    assert capsys.readouterr().out == ""
    status("starting (1 s)")
    status("starting (2 s)")
    status.end()
    clear = "\r\033[K"
    assert capsys.readouterr().out == f"{clear}starting (1 s){clear}starting (2 s){clear}"
