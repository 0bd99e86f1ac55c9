"""The doctor's checks that need the project's packages: device, port, access, token, model, and a first picture."""

import os
import platform
from collections.abc import Sequence
from typing import Any

from handlers.archive import HOME, settings_of
from handlers.config import HandlerConfig
from handlers.custom_models import user_folder
from handlers.errors import ModelError
from handlers.fit import GIB, Device, find_device, torch_build
from handlers.request import TASKS
from handlers.sources import fetch, read_token, resolve_model
from launch.machine import StartError, check_port, gpu_notice
from launch.serve import parse_options, proxy_variables
from launch.trouble import CheckFailed


class Checkup:
    """What server.py would do with these arguments, looked at step by step. Each method raises CheckFailed."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._options = parse_options(arguments)

    @property
    def _settings(self) -> dict[str, Any]:
        try:
            return settings_of(self._options)
        except ModelError as error:
            raise CheckFailed(str(error)) from None

    def _find_device(self) -> Device:
        try:
            return find_device(self._settings["device"], self._settings["dtype"])
        except ModelError as error:
            raise CheckFailed(str(error)) from None

    def device(self) -> str:
        found, build = self._find_device(), torch_build().get("__version__", "?")
        free = f", {found.free_bytes / GIB:.1f} GB free" if found.free_bytes is not None else ""
        on = platform.processor() or platform.machine() if found.device == "cpu" else found.device
        notice = f". {text}" if (text := gpu_notice()) else ""  # it serves all the same
        return f"{found.device} ({on}) in {found.dtype}{free}, torch {build}{notice}"

    def port(self) -> str:
        try:
            check_port(self._options.host, self._options.port)
        except StartError as error:
            raise CheckFailed(str(error)) from None
        return f"{self._options.port} on {self._options.host} is free"

    def access(self) -> str:
        try:
            proxy_variables(self._options)
        except StartError as error:
            raise CheckFailed(str(error)) from None
        return "the options for keys and HTTPS fit"

    def token(self) -> str:
        try:
            token = read_token(HOME, os.environ)
        except ModelError as error:
            raise CheckFailed(str(error)) from None
        # none is no trouble: only some models want one
        if token:
            return "there is one for the model hub"
        file = user_folder(HOME) / "token.txt"
        return f"none: models that want one cannot be downloaded (it goes into HF_TOKEN, or into {file})"

    def model(self) -> str:
        """Downloads a hub model's files where they are missing, as the server would."""
        try:
            source = resolve_model(self._options.model, HOME, os.environ)
            half = self._find_device().dtype != "float32"
            path = fetch(source, HOME, os.environ, half, self._settings["allow_pickle"])
        except ModelError as error:
            raise CheckFailed(str(error)) from None
        return f"{source.location} ({source.reason}), at {path}"

    def picture(self) -> str:
        """Loads the model and draws three steps with each pipeline, in this process."""
        import torch

        from handlers.device import choose_device, choose_dtype
        from handlers.pipelines import CONFIGS, load_pipelines, serve
        from handlers.warm_up import warm_up

        try:
            source = resolve_model(self._options.model, HOME, os.environ)
            device = choose_device(self._settings["device"], None)
            dtype = choose_dtype(self._settings["dtype"], device)
            path = fetch(source, HOME, os.environ, dtype != torch.float32, self._settings["allow_pickle"])
            config = HandlerConfig.from_mapping(self._settings | {"model": source.location})
            pipelines = load_pipelines(path, TASKS, device, dtype, config, HOME / "models" / CONFIGS)
            measured = warm_up(serve(source, path, pipelines), device)
        except ModelError as error:
            raise CheckFailed(str(error)) from None
        return f"all three pipelines draw; a UNet row of native size takes {measured.seconds_per_row * 1000:.0f} ms"
