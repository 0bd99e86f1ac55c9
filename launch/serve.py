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
from admin.placement import Placement, choose_placement, weight_bytes
from handlers.errors import OperatorError
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


def choose(options: argparse.Namespace, source: ModelSource) -> tuple[Placement, dict[str, Any]]:
    """Downloads the models and chooses how to serve them. Returns the choice and the archives' handler settings.

    Raises ModelError.
    """
    settings = settings_of(options) | {"model": source.location}
    prepared = prepare(settings, installation())
    device = prepared.device
    if device.free_bytes is not None:
        settings["dtype"] = device.dtype  # so that the workers need not find out
    if options.archives == "three":
        return Placement(options.low_memory), settings
    weights = sum(weight_bytes(path, device.dtype) for path in prepared.paths) if device.free_bytes is not None else 0
    chosen = choose_placement(device, weights)
    return chosen, settings | {"low_memory": options.low_memory or chosen.low_memory}


def keep_custom_models(server: Server, ending: threading.Event) -> None:
    """Keeps the custom models' archives up to date with config.json, in a thread, until the server is `ending`."""

    def say(text: str) -> None:
        if not ending.is_set():
            print(text, flush=True)

    def watch() -> None:
        archives, restarts = CustomArchives(server.target, installation(), say), 0
        while not ending.wait(1):
            if server.restarts != restarts:  # those that load at the start must be loaded again
                archives, restarts = CustomArchives(server.target, installation(), say), server.restarts
            try:
                archives.update()
            except Exception as error:  # the next change of the file must still be noticed
                say(f"The custom models could not be updated: {error!r}")

    threading.Thread(target=watch, name="custom models", daemon=True).start()


def serve(options: argparse.Namespace) -> None:
    """Runs the server until it is stopped. Raises StartError or ModelError."""
    proxy = proxy_variables(options)
    check_port(options.host, options.port)
    source = resolve_model(options.model, installation())
    print(f"Model: {source.location} ({source.reason})", flush=True)
    if notice := gpu_notice():
        print(notice, flush=True)
    # both may start a process with torch, which is silent for seconds, before the first progress bar of a download
    print("Checking the device and the model's files.", flush=True)
    chosen, settings = choose(options, source)
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
        keep_custom_models(server, ending)
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
