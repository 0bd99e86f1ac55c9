"""`python -m admin.ready`: exit code 0 if the server on this machine can serve all three pipelines, else 1.

For health checks of containers: it asks `/readyz` at the address that the server's own variables name, and needs the
standard library alone.
"""

import ssl
import sys
import urllib.error
import urllib.request

from admin.paths import installation
from handlers.installation import Installation

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}
TIMEOUT_S = 5


def address(host: str, port: int, scheme: str = "http") -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    shown = ANY_ADDRESS.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{shown}:{port}"


def probed(installed: Installation) -> str:
    """The address that says whether the server of this installation is ready."""
    return f"{address(installed.host, installed.port, installed.scheme)}/readyz"


def main() -> int:
    # the certificate is made out for the name that clients use, not for this address
    unchecked = ssl._create_unverified_context()
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked)
    )
    try:
        with opener.open(probed(installation()), timeout=TIMEOUT_S):
            return 0
    except (OSError, urllib.error.URLError) as error:
        print(f"The server is not ready: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
