"""Keeps the archives of config.json's custom models in step with it: `python -m handlers.custom_archives`.

An archive is built into the model store, from which the proxy registers it with the model's first request; one that
shall be there from the start is registered at once. server.py does the same for as long as it runs.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from handlers.archive import HOME, build
from handlers.custom_models import CustomModel, config_file, read_config
from handlers.errors import ModelError
from handlers.reload import Management, ReloadError, Target, find_target
from handlers.sources import download, resolve_model


class CustomArchives:
    """The archives in a running server's model store.

    Args:
        options: handler settings that all of them share.
        say: is told what happens, a sentence a time.
    """

    def __init__(
        self, target: Target, home: Path, environment: Mapping[str, str], options: Mapping[str, object],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._management = Management(target)
        self._store = target.store
        self._home = home
        self._environment = environment
        self._options = options
        self._say = say
        self._file = config_file(home, environment)
        self._seen: float | None = None
        self._built: dict[str, CustomModel] = {}

    def update(self) -> None:
        """Builds what is new, takes away what is gone. Does nothing while the file stays as it is."""
        changed = self._file.stat().st_mtime if self._file.is_file() else 0.0
        if changed == self._seen:
            return
        self._seen = changed
        try:
            models = {model.archive: model for model in read_config(self._file)[0]}
        except ModelError as error:
            self._say(f"{error} The custom models stay as they were.")
            return
        for archive, model in list(self._built.items()):
            if models.get(archive) != model:
                self._remove(archive)
        for archive, model in models.items():
            if archive not in self._built:
                self._add(archive, model)

    def _add(self, archive: str, model: CustomModel) -> None:
        try:
            source = resolve_model(model.model_path, self._home, self._environment)
            download(source, self._home, half=self._options.get("dtype") != "float32")
            settings = {**self._options, "model": source.location, "safety_checker": model.requires_safety_checker}
            build(archive, self._store, settings)
            self._built[archive] = model
            if model.load == "start":
                self._management.register(archive, f"{archive}.mar")
        except (ModelError, ReloadError) as error:
            self._say(f"The custom model {model.ui_label} cannot be served: {error}")
        else:
            self._say(f"Custom model: {model.ui_label} at /custom/{model.url_path}")

    def _remove(self, archive: str) -> None:
        model = self._built.pop(archive)
        (self._store / f"{archive}.mar").unlink(missing_ok=True)
        try:
            if archive in self._management.models():
                self._management.unregister(archive, self._management.default_version(archive)["modelVersion"])
        except ReloadError as error:
            self._say(str(error))
        self._say(f"Custom model {model.ui_label} is gone from {self._file.name}, or has changed.")


def main() -> None:
    home = Path(os.environ.get("SD_HOME") or HOME)
    CustomArchives(find_target(None), home, os.environ, {}, print).update()


if __name__ == "__main__":
    main()
