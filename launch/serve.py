"""Runs the whole server: options, model, placement, and then until it is stopped."""

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from admin.custom_archives import CustomArchives
from admin.download import prepare
from admin.options import add_handler_options, settings_of
from admin.paths import installation
from admin.placement import Placement, choose_placement, models_memory, weight_bytes
from admin.probe import Device
from handlers.errors import OperatorError
from handlers.installation import Installation
from handlers.pipelines.sources import ModelSource, resolve_model
from handlers.wire import HOST, PORT
from launch.console import StatusLine, Stopped, stop_on_signals
from launch.machine import StartError, check_port, gpu_notice
from launch.processes import Server
from proxy.settings import LOG_LEVELS, PREFIX, Settings, SettingsError


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Starts the Stable Diffusion server.")
    parser.add_argument("--host", default=HOST, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on (default: %(default)s)")
    add_handler_options(parser)
    parser.add_argument(
        "--archives",
        choices=("combined", "three"),
        default="combined",
        help="one worker for all pipelines, or three workers, one for each (default: %(default)s)",
    )
    parser.add_argument(
        "--idle-unload", type=float, metavar="MINUTES",
        help="after so many minutes without a request, models leave memory until the next one (default: never)",
    )  # fmt: skip
    parser.add_argument("--models-dir", help="the folder of models that requests may name (default: models)")
    parser.add_argument(
        "--max-models", metavar="N",
        help="the most models in memory at once, or auto: as many as fit by the sizes of their weights (default: auto)",
    )  # fmt: skip
    parser.add_argument("--api-key-file", help="a file with the keys that open the server, one per line")
    parser.add_argument("--api-key", help="one key; it is visible in this machine's process list")
    parser.add_argument("--no-auth", action="store_true", help="listen on other addresses without a key")
    parser.add_argument("--tls-cert", help="the certificate file for HTTPS, with --tls-key")
    parser.add_argument("--tls-key", help="the certificate's key file")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="warning", help="default: %(default)s")
    return parser


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    return argument_parser().parse_args(argv)


def proxy_variables(options: argparse.Namespace) -> dict[str, str]:
    """The options as the proxy's settings. Raises StartError for settings that it would not start with."""
    given = {
        "HOST": options.host, "PORT": str(options.port), "LOG_LEVEL": options.log_level,
        "API_KEY_FILE": options.api_key_file, "API_KEY": options.api_key, "NO_AUTH": "1" if options.no_auth else None,
        "MAX_MODELS": options.max_models,
        "IDLE_UNLOAD": None if options.idle_unload is None else f"{options.idle_unload:g}",
        "TLS_CERT": options.tls_cert, "TLS_KEY": options.tls_key,
    }  # fmt: skip
    variables = {PREFIX + name: value for name, value in given.items() if value}
    try:
        settings = Settings.from_environment({**os.environ, **variables})
    except SettingsError as error:
        raise StartError(str(error)) from None
    for name in ("api_key_file", "tls_cert", "tls_key"):
        if file := getattr(settings, name):
            variables[PREFIX + name.upper()] = str(Path(file).absolute())  # the proxy runs in another folder
    return variables


def choose(options: argparse.Namespace, source: ModelSource) -> tuple[Placement, dict[str, Any], Device]:
    """Downloads the models and chooses how to serve them: the choice, the archives' handler settings, the device.

    Raises ModelError.
    """
    settings = settings_of(options) | {"model": source.location}
    prepared = prepare(settings, installation())
    device = prepared.device
    if options.archives == "three":
        return Placement(options.low_memory), settings, device
    paths = prepared.paths if device.free_bytes is not None else ()
    weights = sum(weight_bytes(path, device.dtype, options.float8_text_encoders) for path in paths)
    chosen = choose_placement(device, weights)
    return chosen, settings | {"low_memory": options.low_memory or chosen.low_memory}, device


def with_models(folder: str | None) -> Installation:
    """This installation, with another folder of models if one is given. Raises StartError if it is not there."""
    if folder is None:
        return installation()
    if not Path(folder).expanduser().is_dir():
        raise StartError(f"There is no folder {folder} for --models-dir: make it, or give another one.")
    absolute = str(Path(folder).expanduser().absolute())
    return Installation(installation().home, {**os.environ, "SD_MODELS_DIR": absolute})


def keep_custom_models(server: Server, installed: Installation, device: Device, ending: threading.Event) -> None:
    """Keeps the archives of models beside the main one up to date, in a thread, until the server is `ending`.

    Args:
        device: as it was before the server was started.
    """
    memory_bytes = models_memory(device)

    def say(text: str) -> None:
        if not ending.is_set():
            print(text, flush=True)

    def started() -> CustomArchives:
        return CustomArchives(server.target, installed, say, device=device, memory_bytes=memory_bytes)

    def watch() -> None:
        archives, restarts, complaint = started(), 0, ""
        while not ending.wait(2):
            if server.restarts != restarts:  # those that load at the start must be loaded again
                archives.close()
                archives, restarts = started(), server.restarts
            try:
                archives.update()
                complaint = ""
            except Exception as error:  # the next change of the file must still be noticed
                if complaint != repr(error):
                    say(f"The custom models could not be updated: {error!r}")
                complaint = repr(error)
        archives.close()

    threading.Thread(target=watch, name="custom models", daemon=True).start()


def serve(options: argparse.Namespace) -> None:
    """Runs the server until it is stopped. Raises StartError or ModelError."""
    proxy = proxy_variables(options)
    check_port(options.host, options.port)
    installed = with_models(options.models_dir)
    source = resolve_model(options.model, installed)
    print(f"Model: {source.location} ({source.reason})", flush=True)
    if notice := gpu_notice():
        print(notice, flush=True)
    # both may start a process with torch, which is silent for seconds, before the first progress bar of a download
    print("Checking the device and the model's files.", flush=True)
    chosen, settings, device = choose(options, source)
    if chosen.reason:
        print(chosen.reason, flush=True)
    server = Server(options, proxy, settings)
    status, ending, failed = StatusLine(), threading.Event(), True
    try:
        print("Starting TorchServe; its workers load the model, which takes half a minute or more.", flush=True)
        status("building the archives")
        server.build_archives()
        server.start()
        server.wait_ready(status)
        status.end()
        print(f"{server.describe()}\nStop with Ctrl-C.", flush=True)
        keep_custom_models(server, installed, device, ending)
        while True:
            time.sleep(1)
            server.remember_processes()
            if sentence := server.restart_dead():
                print(sentence, flush=True)
            for sentence in server.worker_logs.new_failures():
                print(f"A worker cannot start: {sentence}", flush=True)
    except Stopped:
        failed = False
    finally:
        status.end()
        if not failed:
            print("Stopping.", flush=True)
        ending.set()
        server.drain()
        server.stop()
        server.remove_files(keep_logs=failed)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_options(argv)
    stop_on_signals()
    try:
        serve(options)
    except OperatorError as error:
        print(f"Cannot serve: {error}", file=sys.stderr, flush=True)
        return 1
    except Stopped:
        pass
    print("Stopped.", flush=True)
    return 0
