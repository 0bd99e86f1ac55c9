"""Builds the model archives: `python -m admin.archive`.

An archive has the handler code and a model-config.yaml, a few kilobytes; the weights stay where they are.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from admin import leash
from admin.download import prepare
from admin.options import add_handler_options, settings_of
from admin.paths import HOME, PACKAGE, STAGED, installation
from handlers.config import HandlerConfig
from handlers.errors import ModelError
from handlers.wire import COMBINED, CUSTOM, TASKS

VERSION = "1.0"

# TorchServe's side of continuous batching; docs/torchserve.md says why each is as it is
FRONTEND = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 32,
    "maxBatchDelay": 1,
    "responseTimeout": 120,
    "startupTimeout": 900,
    "maxRetryTimeoutInSec": 86_400,
    "jobQueueSize": 64,
    "continuousBatching": True,
}


def tasks_of(name: str) -> tuple[str, ...]:
    """The tasks of an archive of this name: its one task, or all of them for the combined one and custom models."""
    return TASKS if name == COMBINED or name.startswith(CUSTOM) else (name,)


def build(name: str, store: Path, handler: Mapping[str, Any], version: str = VERSION) -> Path:
    """Builds `store/<name>.mar`, or `store/<name>-<version>.mar` for another version, with torch-model-archiver.

    Args:
        name: a task, COMBINED, or `custom-…`.
        handler: keys of HandlerConfig that differ from their defaults.

    Returns the archive's path. Raises ModelError for an unknown key.
    """
    settings = {"home": str(HOME), **handler}
    HandlerConfig.from_mapping(settings)
    store.mkdir(parents=True, exist_ok=True)
    entry_point = (COMBINED if tasks_of(name) == TASKS else name).replace("-", "_")
    stem = name if version == VERSION else f"{name}-{version}"
    with tempfile.TemporaryDirectory(prefix="sd-archive-") as scratch:
        # --extra-files copies a folder's contents, so the package gets a parent folder
        staging = Path(scratch, "staging")
        shutil.copytree(PACKAGE, staging / "handlers", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        config_file = Path(scratch, "model-config.yaml")
        config_file.write_text(yaml.safe_dump({**FRONTEND, "handler": settings}, sort_keys=False), encoding="utf-8")
        command = [
            "model_archiver.model_packaging", "--model-name", stem, "--version", version,
            "--handler", str(PACKAGE / f"{entry_point}.py"), "--extra-files", str(staging),
            "--config-file", str(config_file), "--export-path", str(store), "--force",
        ]  # fmt: skip
        # the archiver works in TMPDIR/<name>, and deletes what it finds there
        environment = {**os.environ, "TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}
        done = leash.run(command, env=environment, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"torch-model-archiver failed for {name}: {done.stderr.strip()}")
    return store / f"{stem}.mar"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m admin.archive", description="Builds the model archives.")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"one of {', '.join(TASKS)}; all by default")
    parser.add_argument("--combined", action="store_true", help=f"{COMBINED}.mar, all three behind one worker")
    parser.add_argument("--version", default=VERSION, help=f"versions other than {VERSION} go to {STAGED}/")
    add_handler_options(parser)
    parser.add_argument("--model-store", type=Path, default=installation().model_store)
    options = parser.parse_args(argv)
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"unknown task {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")
    names = [COMBINED] if options.combined else options.tasks or list(TASKS)
    staged = options.combined or options.version != VERSION
    store = options.model_store / STAGED if staged else options.model_store
    try:
        handler = settings_of(options)
        prepare(handler, installation())
    except ModelError as error:
        parser.exit(1, f"{error}\n")
    for name in names:
        path = build(name, store, handler, options.version)
        print(f"{path} ({path.stat().st_size / 1024:.0f} kB)")


if __name__ == "__main__":
    main()
