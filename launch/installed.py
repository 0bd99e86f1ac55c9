"""The command `sd-api-server`: server.py, as the wheel has it.

The wheel has this file as `sd_api_server/__init__.py`, and beside it all that lies in the project's folder.
"""

import sys
from pathlib import Path


def main() -> int:
    # the others import each other by the names that they have in the project's folder
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from server import main as server

    return server()
