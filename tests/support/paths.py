"""Where the project's files are that tests use."""

import json

from admin.paths import HOME

EMBEDDED = HOME / "models" / "embedded"
CONFIGS = HOME / "models" / "configs"
SIDE: int = json.loads((EMBEDDED / "generation_config.json").read_text())["drawn_size"]  # its native size, in pixels
__all__ = ["CONFIGS", "EMBEDDED", "HOME", "SIDE"]
