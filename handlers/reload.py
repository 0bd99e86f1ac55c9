"""Moved: `python -m admin.reload`. This name keeps working."""

import runpy
import sys

if __name__ == "__main__":
    print("This command has moved: python -m admin.reload", file=sys.stderr)
    runpy.run_module("admin.reload", run_name="__main__")
