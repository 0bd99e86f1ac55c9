"""Prints the project's dependencies, for layers of an image that change less often than its code.

`requirements.py NAME…` prints the named ones only.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:
    if not sys.argv[1:] or re.split(r"[^\w-]", requirement)[0] in sys.argv[1:]:
        print(requirement)
