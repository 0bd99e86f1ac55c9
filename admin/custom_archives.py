"""Keeps the archives of models beside the main one up to date: `python -m admin.custom_archives`.

They are the custom models of config.json, the models in the folder `models`, and what is complete in the hub's cache.
An archive is built into the model store, where a catalogue lists them all (handlers/catalogue.py). The proxy registers
it with the model's first request; a model with `"load": "start"` is registered at once. server.py does the same as long
as it runs.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from admin.archive import VERSION, build
from admin.download import download
from admin.found_models import FoundModel, find_models, missing_part, snapshot
from admin.management import Management
from admin.paths import installation
from admin.placement import GENERATING_BYTES, PROCESS_BYTES, choose_placement, weight_bytes
from admin.probe import Device, find_device
from admin.reload import handler_settings, reload
from admin.running_server import ReloadError, Target, find_target
from handlers.catalogue import FAILED, FOLDER, PREPARING, READY, Catalogue, CatalogueEntry, Contents
from handlers.config import HandlerConfig
from handlers.custom_models import CustomModel, read_config
from handlers.errors import ModelError, OperatorError
from handlers.installation import Installation
from handlers.pipelines.hub import PICKLE_WARNING, PICKLED, check_files
from handlers.pipelines.sources import resolve_model
from handlers.wire import COMBINED, CUSTOM, TASKS

RETRY_S = 60  # after which a failed model is tried again: its download may have been interrupted
AT_ONCE = 4  # models that are prepared side by side
SHARED = (
    "device",
    "dtype",
    "engine",
    "low_memory",
    "float8_text_encoders",
    "channels_last",
    "allow_pickle",
    "lora_dir",
    "embeddings_dir",
    "controlnets_dir",
    "upscalers_dir",
)  # settings that all models share with the main one


@dataclass(frozen=True)
class _Outcome:
    """What came of preparing a model.

    Attributes:
        serves: whether there is an archive of it, perhaps with settings that it had before.
        reason: why it cannot be served, or not with its present settings; a sentence, or empty.
        retry_at: when to try again, on the clock.
    """

    serves: bool = False
    weight_bytes: int = 0
    reason: str = ""
    retry_at: float = math.inf


class CustomArchives:
    """The models' archives in a running server's model store, and the catalogue of them.

    Args:
        say: called with a sentence about each event, from any thread.
        clock: seconds, from any beginning.
        device: what the workers will choose, as it was before any was started; None = find out.
        memory_bytes: what models may take together, for the catalogue; 0 = not known.
    """

    def __init__(
        self,
        target: Target,
        installed: Installation,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        device: Device | None = None,
        memory_bytes: int = 0,
    ) -> None:
        self._management = Management(target)
        self._target, self._store = target, target.store
        self._catalogue = Catalogue(target.store / FOLDER)
        self._installed, self._say, self._clock = installed, say, clock
        self._device, self._memory_bytes = device, memory_bytes
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="models")
        self._config: list[CustomModel] = []  # of config.json, when it was last without a fault
        self._complaint = ""  # about config.json
        self._found: dict[str, FoundModel] = {}  # by archive, as each one is or was prepared
        self._jobs: dict[str, Future[_Outcome | None]] = {}  # preparing or removing an archive
        self._outcomes: dict[str, _Outcome] = {}

    def update(self) -> None:
        """Begins to build new archives and to remove old ones, side by side, and writes down what there is by now."""
        main = self._main_settings()
        before = {one.model.model_path: one.model.url_path for one in self._found.values() if not one.configured}
        models = find_models(self._read_config(), self._main_models(main), self._installed, before)
        found = {one.model.archive: one for one in models}
        built = {file.stem for file in self._store.glob(f"{CUSTOM}*.mar")}
        # 1. what has ended
        for archive in [archive for archive, job in self._jobs.items() if job.done()]:
            if outcome := self._jobs.pop(archive).result():
                self._outcomes[archive] = outcome
        # 2. what is to be removed, or prepared
        for archive in (built | self._outcomes.keys()) - found.keys() - self._jobs.keys():
            self._outcomes.pop(archive, None)
            self._found.pop(archive, None)
            self._jobs[archive] = self._pool.submit(self._remove, archive)
        for archive, one in found.items():
            outcome = self._outcomes.get(archive, _Outcome())
            if archive not in self._jobs and (one != self._found.get(archive) or self._clock() > outcome.retry_at):
                self._found[archive] = one
                self._jobs[archive] = self._pool.submit(self._prepare, one, main, outcome)
        # 3. the catalogue
        entries = tuple(self._entry(one.model) for one in models)
        memory = self._memory_bytes or self._catalogue.contents().memory_bytes
        contents = Contents(memory, PROCESS_BYTES + GENERATING_BYTES, self._weights_of_main(main), entries)
        if not self._catalogue.is_there or contents != self._catalogue.contents():
            self._catalogue.write(contents)

    def finish(self) -> None:
        """Waits for what `update` has begun, and writes it down."""
        wait(self._jobs.values())
        self.update()

    def close(self) -> None:
        """Begins nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _entry(self, model: CustomModel) -> CatalogueEntry:
        outcome = self._outcomes.get(model.archive, _Outcome())
        state = READY if outcome.serves else FAILED if outcome.reason else PREPARING
        reason = outcome.reason if state == FAILED else ""
        return CatalogueEntry(model.url_path, model.ui_label, state, reason, outcome.weight_bytes)

    def _read_config(self) -> list[CustomModel]:
        complaint = ""
        try:
            self._config = read_config(self._installed.config_file)
        except ModelError as error:
            complaint = f"{error} The custom models stay as they were."
        if complaint not in ("", self._complaint):
            self._say(complaint)
        self._complaint = complaint
        return self._config

    def _prepare(self, found: FoundModel, main: Mapping[str, Any], before: _Outcome) -> _Outcome:
        """Builds a model's archive, if it is missing or has other settings."""
        try:
            weights = self._provide(found, main)
        except Exception as error:  # a damaged or unusual model fails in as many ways as there are readers
            if str(error) != before.reason:
                self._say(f"The custom model {found.model.ui_label} cannot be served: {error}")
            return _Outcome(before.serves, before.weight_bytes, str(error) or repr(error), self._clock() + RETRY_S)
        return _Outcome(True, weights)

    def _provide(self, found: FoundModel, main: Mapping[str, Any]) -> int:
        """Builds an archive that is missing or has other settings; loads it if the entry says so.

        Returns the bytes of the model's weights.
        """
        model, archive, device = found.model, found.model.archive, self._find_device(main)
        source = resolve_model(model.model_path, self._installed)
        path = found.path or download(source, self._installed, device.dtype != "float32", main["allow_pickle"])
        _check(path, main["allow_pickle"])
        weights = weight_bytes(path, device.dtype, main["float8_text_encoders"])
        settings = {key: main[key] for key in SHARED} | {
            "model": source.location,
            "safety_checker": model.requires_safety_checker,
            "low_memory": main["low_memory"] or choose_placement(device, weights).low_memory,
        }
        file = self._store / f"{archive}.mar"
        built: Mapping[str, Any] = handler_settings(file) if file.is_file() else {}
        if any(built.get(key) != value for key, value in settings.items()):
            if built and self._is_loaded(archive):
                reload(archive, self._target, settings, self._management, lambda _: None)
            else:
                build(archive, self._store, settings)
            self._say(f"Custom model: {model.ui_label} at /custom/{model.url_path}")
        if model.load == "start" and not self._is_loaded(archive):
            try:
                self._management.register(archive, file.name)
            except ReloadError:
                self._management.unregister(archive, VERSION)  # without a worker it would never be loaded again
                raise
        return weights

    def _main_settings(self) -> dict[str, Any]:
        """The handler settings of the main model's archive."""
        archives = [self._store / f"{name}.mar" for name in (COMBINED, *TASKS)]
        own = next((handler_settings(file) for file in archives if file.is_file()), {})
        return asdict(HandlerConfig()) | own

    def _main_models(self, main: Mapping[str, Any]) -> list[str]:
        """Where the main models are: paths, or hub ids."""
        names = [main["model"], main["inpainting_model"]]
        return [resolve_model(name, self._installed).location for name in names if name]

    def _weights_of_main(self, main: Mapping[str, Any]) -> int:
        """The bytes of their weights, as far as their files are here."""
        names = self._main_models(main)
        places = [Path(name) if Path(name).exists() else snapshot(name, self._installed) for name in names]
        stamps = tuple((place, place.stat().st_mtime_ns) for place in places if place)
        return _weights(stamps, self._find_device(main).dtype)

    def _find_device(self, main: Mapping[str, Any]) -> Device:
        if self._device is None:
            self._device = find_device(main["device"], main["dtype"])
        return self._device

    def _is_loaded(self, archive: str) -> bool:
        return archive in self._management.models()

    def _remove(self, archive: str) -> None:
        """Removes an archive when its open requests are finished; the proxy sends it no new ones."""
        (self._store / f"{archive}.mar").unlink(missing_ok=True)
        self._say(f"Custom model {archive.removeprefix(CUSTOM)} was removed.")
        try:
            if self._is_loaded(archive):
                version = self._management.default_version(archive)["modelVersion"]
                self._management.drain(archive, version)
                self._management.unregister(archive, version)
        except ReloadError as error:
            self._say(str(error))


@lru_cache(maxsize=8)
def _weights(places: tuple[tuple[Path, int], ...], dtype: str) -> int:
    """The bytes of the weights at these places, each with the time of its last change; 0 if they cannot be read."""
    try:
        return sum(weight_bytes(path, dtype) for path, _ in places)
    except ModelError:
        return 0


def _check(path: Path, allow_pickle: bool) -> None:
    """Raises ModelError for files that would not be loaded, by their names."""
    if path.is_file():
        if path.suffix in PICKLED and not allow_pickle:
            raise ModelError(f"{path} is not loaded: {PICKLE_WARNING}")
    else:
        missing = missing_part(path)
        if missing and missing != "safety_checker":  # without which config.json may want it
            raise ModelError(f"{path} is not a whole model: {missing} is missing, damaged or without its weights.")
        check_files(str(path), [file.relative_to(path).as_posix() for file in path.rglob("*")], allow_pickle)


def main() -> int:
    try:
        archives = CustomArchives(find_target(None), installation(), print)
        archives.update()
        archives.finish()
    except OperatorError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
