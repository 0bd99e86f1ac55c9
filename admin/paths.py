"""Where the code lies, and which installation it belongs to."""

from pathlib import Path

import handlers
from handlers.installation import Installation

PACKAGE = Path(handlers.__file__).resolve().parent  # what an archive carries
HOME = PACKAGE.parent
STAGED = ".staged"  # TorchServe's `--models all` loads everything in the store but hidden names


def installation() -> Installation:
    """The one that this code belongs to, with this process's environment."""
    return Installation.find(HOME)
