"""The proxy's settings: read once, from the environment, into one frozen dataclass.

Every setting carries its help text; `docs/configuration.md` lists them and a test holds the two together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

PREFIX = "SD_"
TASKS = ("txt2img", "img2img", "masking")
BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(Exception):
    """A setting's value cannot be used; the message says what it may be."""


def _setting(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """Each field is read from the variable `SD_<NAME>`."""

    host: str = _setting("127.0.0.1", "The address to listen on.")
    port: int = _setting(1337, "The port to listen on.")
    inference_url: str = _setting("http://127.0.0.1:8080", "TorchServe's inference address.")
    management_url: str = _setting("http://127.0.0.1:8081", "TorchServe's management address.")
    archives: str = _setting(
        "txt2img=txt2img,img2img=img2img,masking=masking",
        "Which archive serves which task; the combined one: `txt2img=stable-diffusion,img2img=stable-diffusion,…`.",
    )
    config: str = _setting("config.json", "The original's file that lists the custom models (see README.md).")
    max_body_bytes: int = _setting(67_108_864, "The largest request body; TorchServe's `max_request_size`.")
    max_bytes_in_flight: int = _setting(268_435_456, "The most bytes of bodies held at once, all requests together.")
    deadline_s: float = _setting(0.0, "Seconds after which a request fails with 504; 0 = never.")
    drain_s: float = _setting(30.0, "Seconds that what is being drawn gets when the server is told to stop.")
    failures_as_200: bool = _setting(
        False, "Answer failures on the original's paths with HTTP 200, for clients that insist on it."
    )
    log_level: str = _setting("warning", "`debug`, `info`, `warning` or `error`.", LOG_LEVELS)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises SettingsError for a value of the wrong type or form."""
        values: dict[str, Any] = {}
        for setting in fields(cls):
            name = PREFIX + setting.name.upper()
            if environment.get(name):
                values[setting.name] = _parse(
                    name, environment[name], type(setting.default), setting.metadata["choices"]
                )
        settings = cls(**values)
        settings.archive_of_task()
        return settings

    def archive_of_task(self) -> dict[str, str]:
        """The archive's name for each task."""
        try:
            archives = dict(pair.strip().split("=", 1) for pair in self.archives.split(","))
        except ValueError:
            archives = {}
        if sorted(archives) != sorted(TASKS) or not all(archives.values()):
            raise SettingsError(
                f"{PREFIX}ARCHIVES must be task=archive for each of {', '.join(TASKS)}, with commas between."
            )
        return archives


def _parse(name: str, text: str, kind: type, choices: tuple[str, ...]) -> Any:
    try:
        value = BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        expected = "yes or no" if kind is bool else f"a number ({kind.__name__})"
        raise SettingsError(f"{name} must be {expected}, not {text!r}.") from None
    if choices and value not in choices:
        raise SettingsError(f"{name} must be one of {', '.join(choices)}, not {text!r}.")
    if kind in (int, float) and not 0 <= value < math.inf:
        raise SettingsError(f"{name} must be a finite number of at least 0, not {text!r}.")
    return value
