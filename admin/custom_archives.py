"""Keeps the archives of custom models up to date with config.json: `python -m admin.custom_archives`.

An archive is built into the model store, and the proxy registers it with the model's first request. A model with
`"load": "start"` is registered at once. server.py does the same as long as it runs.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from admin.archive import VERSION, build
from admin.download import prepare
from admin.management import Management
from admin.paths import installation
from admin.reload import handler_settings, reload
from admin.running_server import ReloadError, Target, find_target
from handlers.config import HandlerConfig
from handlers.custom_models import CustomModel, read_config
from handlers.errors import ModelError, OperatorError
from handlers.installation import Installation
from handlers.pipelines.sources import resolve_model
from handlers.wire import COMBINED, CUSTOM, TASKS

RETRY_S = 60  # after which a failed model is tried again: its download may have been interrupted
SHARED = (
    "device",
    "dtype",
    "engine",
    "low_memory",
    "channels_last",
    "allow_pickle",
)  # settings that custom models share with the main one


class CustomArchives:
    """The custom models' archives in a running server's model store.

    Args:
        say: called with a sentence about each event.
        clock: seconds, from any beginning.
    """

    def __init__(
        self,
        target: Target,
        installed: Installation,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._management = Management(target)
        self._store = target.store
        self._installed = installed
        self._say = say
        self._clock = clock
        self._file = installed.config_file
        self._seen: float | None = None
        self._failed: dict[str, str] = {}
        self._retry_at = 0.0

    def update(self) -> None:
        """Builds new archives and removes old ones. Does nothing while the file stays as it is."""
        try:
            changed = self._file.stat().st_mtime
        except OSError:
            changed = 0.0
        if changed == self._seen and not (self._failed and self._clock() > self._retry_at):
            return
        if changed != self._seen:
            self._failed = {}
        self._seen, self._retry_at = changed, self._clock() + RETRY_S
        try:
            models = {model.archive: model for model in read_config(self._file)}
        except ModelError as error:
            self._say(f"{error} The custom models stay as they were.")
            return
        built = {file.stem: handler_settings(file) for file in self._store.glob(f"{CUSTOM}*.mar")}
        for archive in built.keys() - models.keys():
            self._remove(archive)
        for archive, model in models.items():
            try:
                self._provide(archive, model, built.get(archive))
            except (OperatorError, RuntimeError, OSError) as error:
                sentence = f"The custom model {model.ui_label} cannot be served: {error}"
                if self._failed.get(archive) != sentence:
                    self._say(sentence)
                self._failed[archive] = sentence
            else:
                self._failed.pop(archive, None)

    def _provide(self, archive: str, model: CustomModel, built: Mapping[str, Any] | None) -> None:
        """Builds an archive that is missing or has other settings; loads it if the entry says so."""
        source = resolve_model(model.model_path, self._installed)
        settings = self._shared() | {"model": source.location, "safety_checker": model.requires_safety_checker}
        if built is None or any(built.get(key) != value for key, value in settings.items()):
            prepare(settings, self._installed)
            if built is not None and self._is_loaded(archive):
                reload(archive, self._target, settings, self._management, lambda _: None)
            else:
                build(archive, self._store, settings)
            self._say(f"Custom model: {model.ui_label} at /custom/{model.url_path}")
        if model.load == "start" and not self._is_loaded(archive):
            try:
                self._management.register(archive, f"{archive}.mar")
            except ReloadError:
                self._management.unregister(archive, VERSION)  # without a worker it would never be loaded again
                raise

    def _shared(self) -> dict[str, Any]:
        """The settings of the main model's archive."""
        archives = [self._store / f"{name}.mar" for name in (COMBINED, *TASKS)]
        main: Mapping[str, Any] = next((handler_settings(file) for file in archives if file.is_file()), {})
        return {key: main.get(key, getattr(HandlerConfig(), key)) for key in SHARED}

    def _is_loaded(self, archive: str) -> bool:
        return self._store.is_dir() and archive in self._management.models()

    def _remove(self, archive: str) -> None:
        """Removes an archive when its open requests are finished; the proxy sends it no new ones."""
        (self._store / f"{archive}.mar").unlink(missing_ok=True)
        self._say(f"Custom model {archive.removeprefix(CUSTOM)} was removed from {self._file.name}.")
        try:
            if self._is_loaded(archive):
                version = self._management.default_version(archive)["modelVersion"]
                self._management.drain(archive, version)
                self._management.unregister(archive, version)
        except ReloadError as error:
            self._say(str(error))


def main() -> int:
    try:
        CustomArchives(find_target(None), installation(), print).update()
    except ReloadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
