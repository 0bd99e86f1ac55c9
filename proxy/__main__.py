"""`python -m proxy` runs the proxy alone, set up by SD_… variables."""

import logging
import os
import sys

import uvicorn

from proxy.app import create_app
from proxy.draining import DrainingServer
from proxy.settings import Settings, SettingsError
from proxy.telemetry import JsonFormatter


def main() -> None:
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.exit(str(error))
    log = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setFormatter(JsonFormatter() if settings.log_format == "json" else text)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[log])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every readiness check
    app = create_app(settings)
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, log_level=settings.log_level, log_config=None, access_log=False,
        ssl_certfile=settings.tls_cert or None, ssl_keyfile=settings.tls_key or None, server_header=False,
    )  # fmt: skip
    DrainingServer(config, app.state.drain, settings.leave_s, settings.drain_s).run()


if __name__ == "__main__":
    main()
