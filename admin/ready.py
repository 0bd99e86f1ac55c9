"""`python -m admin.ready`: exit code 0 if the server on this machine can serve all three pipelines, else 1.

For health checks of containers: it asks `/readyz` at the address that the server's own variables name, and needs the
standard library alone.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping

ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}
TIMEOUT_S = 5


def address(environment: Mapping[str, str]) -> str:
    """Where this machine reaches the server."""
    scheme = "https" if environment.get("SD_TLS_CERT") else "http"
    host = environment.get("SD_HOST", "")
    host = ANY_ADDRESS.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{host}:{environment.get('SD_PORT') or 1337}/readyz"


def main() -> int:
    # the certificate is made out for the name that clients use, not for this address
    unchecked = ssl._create_unverified_context()
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked)
    )
    try:
        with opener.open(address(os.environ), timeout=TIMEOUT_S):
            return 0
    except (OSError, urllib.error.URLError) as error:
        print(f"The server is not ready: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
