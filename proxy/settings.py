"""The proxy's settings: read once, from the environment, into one frozen dataclass.

Every setting carries its help text; `docs/configuration.md` lists them and a test holds the two together.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from handlers.errors import OperatorError
from handlers.wire import HOST, INFERENCE_URL, MANAGEMENT_URL, PORT, TASKS
from proxy.access import is_loopback

PREFIX = "SD_"
BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(OperatorError):
    """A setting's value cannot be used; the message says what it may be."""


def _setting(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """Each field is read from the variable `SD_<NAME>`."""

    host: str = _setting(HOST, "The address to listen on.")
    port: int = _setting(PORT, "The port to listen on.")
    inference_url: str = _setting(INFERENCE_URL, "TorchServe's inference address.")
    management_url: str = _setting(MANAGEMENT_URL, "TorchServe's management address.")
    metrics_url: str = _setting("http://127.0.0.1:8082", "TorchServe's metrics address.")
    archives: str = _setting(
        "txt2img=txt2img,img2img=img2img,masking=masking",
        "Which archive serves which task; the combined one: `txt2img=stable-diffusion,img2img=stable-diffusion,…`.",
    )
    config: str = _setting(
        "config.json", "The file that lists the custom models, as in the original server (see README.md)."
    )
    catalogue: str = _setting(
        "model_store/.catalogue",
        "The folder where `admin.custom_archives` lists the models, and workers say why one does not load.",
    )
    max_models: str = _setting(
        "auto",
        "Models in memory at once, the main one among them, or `auto`: as many as fit by the sizes of their weights.",
    )
    max_body_bytes: int = _setting(67_108_864, "The largest request body; TorchServe's `max_request_size`.")
    max_bytes_in_flight: int = _setting(268_435_456, "The most bytes of all bodies that are held at once.")
    max_open: int = _setting(
        32, "Requests that an archive runs at a time; its `batchSize`. One client has at most half."
    )
    max_waiting: int = _setting(256, "Requests that queue for an archive; more get 503.")
    max_per_client: int = _setting(
        64, "Open requests of one client (an API key, otherwise an address) per archive; more get 429."
    )
    max_kept: int = _setting(1000, "Jobs, and images answered by address, that are held at once; more get 429.")
    max_kept_bytes: int = _setting(
        268_435_456, "The most bytes of finished images that are kept to be fetched; the oldest go first."
    )
    node: str = _setting(
        "", "The name of this server among others behind a load balancer, which routes by it (docs/deploy.md)."
    )
    idle_unload: float = _setting(
        0.0, "Minutes without a request for an image after which a model leaves memory, until the next; 0 = never."
    )
    restart_s: float = _setting(
        60.0,
        "Seconds that a request waits for a worker, or for TorchServe, that is being restarted; then it gets 503. "
        "Where a model takes longer than half of it to load, set it to twice that time.",
    )
    deadline_s: float = _setting(0.0, "Seconds after which a request fails with 504; 0 = never.")
    leave_s: float = _setting(
        0.0, "After SIGTERM, keep accepting requests for this many seconds while `/readyz` already fails."
    )
    drain_s: float = _setting(30.0, "After SIGTERM, wait this many seconds for running requests to finish.")
    failures_as_200: bool = _setting(
        False, "Answer failures on the original server's paths with HTTP 200, for clients that require it."
    )
    api_key: str = _setting("", "The key that every request must carry; several are separated by commas.")
    api_key_file: str = _setting("", "A file with keys, one per line; lines that begin with # are comments.")
    no_auth: bool = _setting(False, "Listen on addresses other than loopback without a key.")
    allowed_hosts: str = _setting("", "Names of this server that clients may use, separated by commas; `*` for any.")
    allowed_origins: str = _setting(
        "",
        "Web pages that may use the server, as `https://example.com`, separated by commas; `*` for any (SECURITY.md).",
    )
    tls_cert: str = _setting("", "The certificate file, for HTTPS.")
    tls_key: str = _setting("", "The certificate's key file.")
    log_format: str = _setting("text", "`text` or `json`.", LOG_FORMATS)
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
        settings.most_models()
        for limit in ("max_open", "max_per_client"):
            if getattr(settings, limit) < 1:
                raise SettingsError(f"{PREFIX}{limit.upper()} must be at least 1.")
        if not re.fullmatch(r"[A-Za-z0-9.-]{0,253}", settings.node):
            raise SettingsError(f"{PREFIX}NODE must be letters, digits, dots and hyphens, not {settings.node!r}.")
        if bool(settings.tls_cert) != bool(settings.tls_key):
            raise SettingsError(
                f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY (--tls-cert and --tls-key) belong together: set both or neither."
            )
        for file in filter(None, (settings.tls_cert, settings.tls_key)):
            if not Path(file).is_file():
                raise SettingsError(f"There is no file {file} for HTTPS.")
        keys = settings.api_keys()
        if not is_loopback(settings.host) and not keys and not settings.no_auth:
            raise SettingsError(
                f"On {settings.host} others can reach this server: set an API key ({PREFIX}API_KEY_FILE or "
                f"--api-key-file), or {PREFIX}NO_AUTH=1 (--no-auth) if everybody may use it."
            )
        return settings

    def api_keys(self) -> list[str]:
        """The keys that give access. Raises SettingsError for a file that cannot be read or is empty."""
        keys = listed(self.api_key)
        if self.api_key_file:
            try:
                # Windows' editors begin a file with a byte order mark
                lines = Path(self.api_key_file).read_text(encoding="utf-8-sig").splitlines()
            except OSError as error:
                raise SettingsError(
                    f"The file of API keys {self.api_key_file} cannot be read: {error.strerror}."
                ) from None
            except ValueError:
                raise SettingsError(
                    f"The file of API keys {self.api_key_file} is not UTF-8 text: save it as such."
                ) from None
            found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            if not found:
                raise SettingsError(f"The file of API keys {self.api_key_file} has no key in it.")
            keys += found
        if not all(key.isascii() and key.isprintable() and "/" not in key and key.strip(".") for key in keys):
            raise SettingsError(
                "An API key must be printable ASCII without '/', and not only dots, because it may be part of a path: "
                "`openssl rand -hex 24` makes one."
            )
        return keys

    def most_models(self) -> int:
        """The most archives in memory; 0 for `auto`."""
        if self.max_models == "auto":
            return 0
        if not self.max_models.isdecimal() or int(self.max_models) < 1:
            raise SettingsError(
                f"{PREFIX}MAX_MODELS (--max-models) must be a whole number of at least 1, or auto, not "
                f"{self.max_models!r}."
            )
        return int(self.max_models)

    def archive_of_task(self) -> dict[str, str]:
        """The archive's name for each task."""
        try:
            archives = dict(pair.strip().split("=", 1) for pair in self.archives.split(","))
        except ValueError:
            archives = {}
        if sorted(archives) != sorted(TASKS) or not all(archives.values()):
            raise SettingsError(
                f"{PREFIX}ARCHIVES must be task=archive for each of {', '.join(TASKS)}, separated by commas."
            )
        return archives


def listed(text: str) -> list[str]:
    """The parts of a setting, which commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]


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
