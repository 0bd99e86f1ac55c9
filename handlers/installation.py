"""Where the files of this installation lie, and which model its environment names. Needs the standard library alone.

Nothing else in `handlers`, `admin` and `launch` reads these variables; the proxy has settings of its own
(proxy/settings.py).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from handlers.custom_models import FILE_NAME, hub_token
from handlers.errors import ModelError


@dataclass(frozen=True)
class Installation:
    """The project's folder and the environment that the server was started in.

    Attributes:
        home: the folder that holds the code, `models` and `config.properties`.
    """

    home: Path
    environment: Mapping[str, str]

    @classmethod
    def find(cls, recorded: str | Path) -> "Installation":
        """This process's: its home is SD_HOME, else `recorded`, the folder of the code or what an archive says."""
        return cls(Path(os.environ.get("SD_HOME") or recorded), os.environ)

    @property
    def user_folder(self) -> Path:
        """Where people's own files lie, `token.txt`, `config.json` and `model_store`: the project's folder.

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
    def model(self) -> str | None:
        """The model that SD_MODEL names."""
        return self.environment.get("SD_MODEL") or None

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
