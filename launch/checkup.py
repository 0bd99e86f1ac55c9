"""The doctor's checks that need the project's packages: device, port, access, token, model, and a first image."""

import platform
from collections.abc import Sequence
from typing import Any

from admin.download import prepare
from admin.options import settings_of
from admin.paths import HOME, installation
from admin.placement import GIB
from admin.probe import find_device, torch_build
from handlers.wire import TASKS
from launch.machine import check_port, gpu_notice
from launch.processes import expectation
from launch.serve import parse_options, proxy_variables


class Checkup:
    """Checks step by step what server.py would do with these arguments. Each method raises OperatorError."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._options = parse_options(arguments)

    @property
    def _settings(self) -> dict[str, Any]:
        return settings_of(self._options)

    def device(self) -> str:
        found = find_device(self._settings["device"], self._settings["dtype"])
        build = torch_build().get("__version__", "?")
        free = f", {found.free_bytes / GIB:.1f} GB free" if found.free_bytes is not None else ""
        on = platform.processor() or platform.machine() if found.device == "cpu" else found.device
        notice = f". {text}" if (text := gpu_notice()) else ""  # the server works all the same
        return f"{found.device} ({on}) in {found.dtype}{free}, torch {build}{notice}"

    def port(self) -> str:
        check_port(self._options.host, self._options.port)
        return f"{self._options.port} on {self._options.host} is free"

    def access(self) -> str:
        proxy_variables(self._options)
        return "the options for keys and HTTPS are valid"

    def token(self) -> str:
        token = installation().token()
        # having none is fine: only some models need one
        if token:
            return "there is one for the model hub"
        file = installation().token_file
        return f"none: models that need one cannot be downloaded (put it into HF_TOKEN or {file})"

    def model(self) -> str:
        """Downloads missing files of a hub model, as the server would."""
        prepared = prepare(self._settings, installation())
        source = prepared.sources[0]
        place = "" if source.location == str(prepared.paths[0]) else f", at {prepared.paths[0]}"
        return f"{source.location} ({source.reason}){place}"

    def image(self) -> str:
        """Loads the model and generates three steps with each pipeline, in this process."""
        import torch

        from handlers.worker import Worker

        worker = Worker.load(TASKS, self._settings | {"home": str(HOME)}, None, torch.get_num_threads())
        return f"all three pipelines generate: {expectation(worker.describe(0)['models'][0])}"
