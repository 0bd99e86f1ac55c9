"""Replaces a running archive with a new version, without a failed request.

    python -m admin.reload txt2img [--model …]

builds the new version, registers it beside the old one, generates a first image with it, makes it the default, waits
until nothing is in flight on the old one, and unregisters the old one. If the new version does not start or cannot
generate, the old one keeps serving. Everything goes through TorchServe's management API; docs/operations.md has the
plain requests.
"""

import argparse
import base64
import io
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from admin.archive import build, tasks_of
from admin.download import prepare
from admin.management import Management
from admin.paths import installation
from admin.running_server import ReloadError, Target, find_target
from handlers.errors import OperatorError
from handlers.wire import COMBINED, TASKS


def reload(
    name: str, target: Target, changes: dict[str, str], management: Management, say: Callable[[str], None]
) -> str:
    """Replaces the default version of the archive `name`. Returns the new version.

    Args:
        changes: handler settings that differ from the running version's.

    Raises ReloadError. The old version then still serves, unless only its removal failed.
    """
    old = management.default_version(name)
    version = next_version([described["modelVersion"] for described in management.versions(name)])
    running = target.store / old["modelUrl"]
    settings = handler_settings(running if running.is_file() else target.store / f"{name}.mar") | changes
    settings.pop("home", None)  # where this archive is built, not where the old one was
    say(f"building {name} {version}")
    archive = build(name, target.store, settings, version)
    try:
        say("starting its worker")
        management.register(name, archive.name)
        try:
            for task in tasks_of(name):
                say(f"generating a first image with {task}")
                management.predict(name, version, task, first_request())
            management.set_default(name, version)
        except ReloadError:
            management.unregister(name, version)
            raise
    except ReloadError as error:
        archive.unlink(missing_ok=True)
        raise ReloadError(f"{name} {old['modelVersion']} still serves. {error}") from None
    say(f"waiting for requests in flight on {old['modelVersion']}")
    management.drain(name, old["modelVersion"])
    try:
        management.unregister(name, old["modelVersion"])
    except ReloadError as error:
        raise ReloadError(f"{name} {version} serves, but {old['modelVersion']} is still there: {error}") from None
    # the name that `--models all` and the next reload expect; TorchServe has read the file already
    running.unlink(missing_ok=True)
    archive.replace(target.store / f"{name}.mar")
    return version


def next_version(versions: Sequence[str]) -> str:
    """One more than the highest of TorchServe's version names, `1.0` and the like."""
    return f"{1 + max(int(version.partition('.')[0]) for version in versions)}.0"


def handler_settings(archive: Path) -> dict[str, Any]:
    """The handler settings of an archive's model-config.yaml. Raises ReloadError for an archive that is not ours."""
    try:
        with zipfile.ZipFile(archive) as opened:
            config = yaml.safe_load(opened.read("model-config.yaml"))
        return dict(config["handler"])
    except (OSError, KeyError, TypeError, zipfile.BadZipFile):
        raise ReloadError(
            f"{archive} is not an archive of this server: build it with python -m admin.archive."
        ) from None


def first_request() -> dict[str, Any]:
    """The fields of a short request that every task accepts."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    return {"prompt": "", "num_inference_steps": 2, "strength": 1, "init_image": image, "mask_image": image}


def listing(management: Management) -> str:
    """A line for every version of every archive."""
    lines = []
    for name in sorted(management.models()):
        default = management.default_version(name)["modelVersion"]
        for described in management.versions(name):
            version = described["modelVersion"]
            workers = ", ".join(worker["status"] for worker in described["workers"]) or "no worker"
            lines.append(f"{name} {version}{' (default)' if version == default else ''}: {workers}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m admin.reload", description="Replaces running archives without a failed request."
    )
    parser.add_argument(
        "archives", nargs="*", metavar="ARCHIVE", help=f"{', '.join(TASKS)} or {COMBINED}; all that serve by default"
    )
    parser.add_argument("--list", action="store_true", help="show what is registered")
    parser.add_argument("--model", help="another model: a hub id or the absolute path of a model folder")
    parser.add_argument("--device", help="another device")
    parser.add_argument("--dtype", help="another dtype")
    parser.add_argument("--port", type=int, help="which server, if several run, by the port that clients use")
    options = parser.parse_args(argv)
    changes = {key: value for key in ("model", "device", "dtype") if (value := getattr(options, key))}
    try:
        target = find_target(options.port)
        management = Management(target)
        if options.list:
            print(listing(management))
            return 0
        if options.model:
            changes["model"] = prepare(changes, installation()).sources[0].location
        for name in options.archives or sorted({*TASKS, COMBINED}.intersection(management.models())):
            version = reload(name, target, changes, management, lambda text: print(f"  {text}", flush=True))
            print(f"{name} {version} serves.", flush=True)
    except OperatorError as error:
        print(f"Not reloaded: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
