"""The health check of containers."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from admin import ready
from handlers.installation import Installation
from tests.support.paths import HOME


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, "http://127.0.0.1:1337/readyz"),
        ({"SD_HOST": "0.0.0.0", "SD_PORT": "1400"}, "http://127.0.0.1:1400/readyz"),
        ({"SD_HOST": "::", "SD_TLS_CERT": "cert.pem"}, "https://[::1]:1337/readyz"),
        ({"SD_HOST": "fd00::1"}, "http://[fd00::1]:1337/readyz"),
    ],
)
def test_it_asks_where_the_server_listens(environment: dict[str, str], address: str) -> None:
    assert ready.probed(Installation(HOME, environment)) == address


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(type(self).status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


def test_its_exit_code_is_the_answer(server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_HOST", "127.0.0.1")
    monkeypatch.setenv("SD_PORT", str(server.server_port))
    monkeypatch.delenv("SD_TLS_CERT", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a proxy for the internet is not asked
    assert ready.main() == 0
    server.RequestHandlerClass.status = 503  # type: ignore[attr-defined]
    assert ready.main() == 1
    monkeypatch.setenv("SD_PORT", "9")
    assert ready.main() == 1
