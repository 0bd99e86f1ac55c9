"""Prints the project's dependencies, each in the version that was tested, for the container image.

An image's layers change less often than its code: `requirements.py NAME…` prints the named ones only.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
tested = dict(re.findall(r"^([\w-]+)==([^\s;]+)", Path("constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
for requirement in project["dependencies"]:
    name = re.split(r"[^\w-]", requirement)[0]
    if not sys.argv[1:] or name in sys.argv[1:]:
        print(f"{name}=={tested[name]}")
