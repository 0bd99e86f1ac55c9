"""Moved: `python -m admin.reload`. This name keeps working."""

import runpy

if __name__ == "__main__":
    runpy.run_module("admin.reload", run_name="__main__")
