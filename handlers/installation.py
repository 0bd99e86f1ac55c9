"""Where the files and the servers of this installation are, as its environment says. Needs the standard library alone.

Nothing else in `handlers`, `admin` and `launch` looks up a variable `SD_…`; the proxy has settings of its own
(proxy/settings.py).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from handlers.custom_models import FILE_NAME, hub_token
from handlers.errors import ModelError
from handlers.wire import HOST, INFERENCE_URL, MANAGEMENT_URL, PORT


@dataclass(frozen=True)
class Installation:
    """The project's folder and the environment that the server was started in.

    Attributes:
        home: the folder that holds the code, `models` and `config.properties`.
    """

    home: Path
    environment: Mapping[str, str]

    @classmethod
    def find(cls, recorded: str | Path, environment: Mapping[str, str] = os.environ) -> "Installation":
        """Its home is SD_HOME, else `recorded`: the folder of the code, or the one that an archive names."""
        return cls(Path(environment.get("SD_HOME") or recorded), environment)

    @property
    def user_folder(self) -> Path:
        """Where people's own files lie, `token.txt`, `loras`, `model_store` and others: the project's folder.

        The folder of an installed server belongs to pip, which may replace it: then it is `~/.sd-api-server`.
        """
        is_installed = (self.home / "__init__.py").is_file()  # launch/installed.py: the wheel is one package
        return Path(os.path.expanduser("~"), ".sd-api-server") if is_installed else self.home

    @property
    def embedded_model(self) -> Path:
        return self.home / "models" / "embedded"

    @property
    def configs(self) -> Path:
        """The components' configurations for single files, which hold weights alone."""
        return self.home / "models" / "configs"

    @property
    def config_file(self) -> Path:
        """SD_CONFIG, else config.json in the user's folder; as an absolute path."""
        return Path(self.environment.get("SD_CONFIG") or self.user_folder / FILE_NAME).absolute()

    @property
    def loras(self) -> Path:
        """The LoRAs that prompts may name, in the user's folder."""
        return self.user_folder / "loras"

    @property
    def embeddings(self) -> Path:
        """The embeddings that prompts may name, in the user's folder."""
        return self.user_folder / "embeddings"

    @property
    def controlnets(self) -> Path:
        """The ControlNets' files, in the user's folder."""
        return self.user_folder / "controlnets"

    @property
    def upscalers(self) -> Path:
        """The upscalers' files, in the user's folder."""
        return self.user_folder / "upscalers"

    @property
    def models(self) -> Path:
        """The models that may be served beside the main one: SD_MODELS_DIR, else `models` in the user's folder."""
        return Path(self.environment.get("SD_MODELS_DIR") or self.user_folder / "models")

    @property
    def hub_cache(self) -> Path:
        """Where huggingface_hub keeps what it has downloaded."""
        caches = self.environment.get("XDG_CACHE_HOME") or "~/.cache"
        home = self.environment.get("HF_HOME") or Path(caches, "huggingface")
        return Path(self.environment.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()

    @property
    def catalogue(self) -> Path | None:
        """The folder in which workers say why their models are not loaded: SD_CATALOGUE. Without it, they do not."""
        return Path(folder) if (folder := self.environment.get("SD_CATALOGUE")) else None

    @property
    def model(self) -> str | None:
        """The model that SD_MODEL names."""
        return self.environment.get("SD_MODEL") or None

    @property
    def model_store(self) -> Path:
        """SD_MODEL_STORE, else `model_store` in the user's folder."""
        return Path(self.environment.get("SD_MODEL_STORE") or self.user_folder / "model_store")

    @property
    def management_url(self) -> str:
        """TorchServe's management address: SD_MANAGEMENT_URL, else that of config.properties."""
        return self.environment.get("SD_MANAGEMENT_URL") or MANAGEMENT_URL

    @property
    def inference_url(self) -> str:
        """TorchServe's inference address: SD_INFERENCE_URL, else that of config.properties."""
        return self.environment.get("SD_INFERENCE_URL") or INFERENCE_URL

    @property
    def host(self) -> str:
        """The address that the proxy listens on: SD_HOST, else loopback."""
        return self.environment.get("SD_HOST") or HOST

    @property
    def port(self) -> int:
        """The port that the proxy listens on: SD_PORT, else 1337. Raises ValueError for one that is no number."""
        return int(self.environment.get("SD_PORT") or PORT)

    @property
    def scheme(self) -> str:
        """`https` if SD_TLS_CERT names a certificate for the proxy, else `http`."""
        return "https" if self.environment.get("SD_TLS_CERT") else "http"

    @property
    def conversions(self) -> Path:
        """Where models that were converted for this machine are kept: SD_CACHE_DIR, else beside the hub's models."""
        if chosen := self.environment.get("SD_CACHE_DIR"):
            return Path(chosen)
        return Path(os.path.expanduser(self.environment.get("HF_HOME") or "~/.cache"), "sd-api-server")

    @property
    def writes_parameters(self) -> bool:
        """Whether images carry the parameters they were generated with: unless SD_METADATA is `none`.

        Raises ModelError for another value.
        """
        return not self._one_of("SD_METADATA", ("parameters", "none"))

    @property
    def writes_mark(self) -> bool:
        """Whether images carry the mark of generated ones: unless SD_MARK is 0. Raises ModelError for another value."""
        return not self._one_of("SD_MARK", ("1", "0"))

    def _one_of(self, name: str, choices: tuple[str, ...]) -> int:
        """The place of the variable's value among `choices`; 0 if it is not set."""
        value = self.environment.get(name, "").strip().lower() or choices[0]
        if value not in choices:
            raise ModelError(f"{name} must be {' or '.join(choices)}, not {value!r}.")
        return choices.index(value)

    @property
    def token_file(self) -> Path:
        return self.user_folder / "token.txt"

    def token(self) -> str | None:
        """The hub token: HF_TOKEN, else `token.txt` in the user's folder, else `hf_token` in config.json.

        Raises ModelError for a token.txt that is no text.
        """
        token = self.environment.get("HF_TOKEN", "").strip()
        file = self.token_file
        if not token and file.is_file():
            try:
                token = file.read_text(encoding="utf-8-sig").strip()
            except ValueError:
                raise ModelError(f"{file} is not a plain text file: save the token again, as UTF-8.") from None
        return token or hub_token(self.config_file)
