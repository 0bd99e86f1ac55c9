"""`python -m proxy` runs the proxy alone, configured by SD_… variables."""

import contextlib
import logging
import os
import sys

import uvicorn
from starlette.applications import Starlette

from proxy.app import create_app
from proxy.connections import KEEP_ALIVE_S, Protocol
from proxy.settings import Settings, SettingsError
from proxy.shutdown import DrainingServer
from proxy.telemetry import JsonFormatter

MAX_HEAD_BYTES = 32_768


def main() -> None:
    _raise_open_files()
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.exit(str(error))
    log = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[log])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every readiness check
    app = create_app(settings)
    DrainingServer(configuration(app, settings), app.state.drain, settings.leave_s, settings.drain_s).run()


def configuration(app: Starlette, settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration."""
    return uvicorn.Config(
        app, host=settings.host, port=settings.port, log_level=settings.log_level, log_config=None, access_log=False,
        ssl_certfile=settings.tls_cert or None, ssl_keyfile=settings.tls_key or None, server_header=False,
        http=Protocol, h11_max_incomplete_event_size=MAX_HEAD_BYTES, ws="none", timeout_keep_alive=KEEP_ALIVE_S,
    )  # fmt: skip


def _raise_open_files() -> None:
    """Raises the limit of open files as far as allowed: a request takes two, and the usual limit is 1024."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS reports unlimited and does not accept it
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


if __name__ == "__main__":
    main()
