"""`python3 server.py` starts the whole server on this machine: TorchServe with its workers, and the proxy.

It builds the archives that it serves into a run directory of its own, so that two servers never share anything, shows
what it is doing, and on Ctrl-C or SIGTERM ends everything that it started. `python3 server.py doctor` checks the
machine instead, and says what to do.
"""

from __future__ import annotations  # for the doctor, on older Pythons

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["doctor"]:
        from launch.doctor import main as doctor  # which finds what is not installed

        return doctor(arguments[1:])
    from launch.serve import main as serve

    return serve(arguments)


if __name__ == "__main__":
    sys.exit(main())
