"""`python -m proxy` runs the proxy alone, set up by SD_… variables."""

import logging
import os
import sys

import uvicorn

from proxy.app import create_app
from proxy.draining import DrainingServer
from proxy.settings import Settings, SettingsError


def main() -> None:
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.exit(str(error))
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log every readiness check
    app = create_app(settings)
    config = uvicorn.Config(app, host=settings.host, port=settings.port, log_level=settings.log_level, access_log=False)
    DrainingServer(config, app.state.drain, settings.drain_s).run()


if __name__ == "__main__":
    main()
