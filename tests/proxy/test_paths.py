"""Addresses as plugins join them."""

import pytest

from proxy.custom_models import CustomModels
from proxy.paths import normalized
from tests.support.torchserve import RESULT, client, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("sent", "served"),
    [
        ("/ping", "/ping"),
        ("//ping", "/ping"),
        ("///txt2img//", "/txt2img"),
        ("/txt2img/", "/txt2img"),
        ("/k/KEY//ping", "/k/KEY/ping"),
        ("/k/KEY/", "/k/KEY/"),
        ("/k/KEY", "/k/KEY"),
        ("/", "/"),
        ("//", "/"),
        ("", "/"),
        ("http://127.0.0.1:1337/ping", "/ping"),
        ("HTTPS://box.local//ping/", "/ping"),
        ("http://box.local", "/"),
        ("/httpfoo", "/httpfoo"),
        ("/ping\n", "/ping%0A"),
        ("/images/generations", "/v1/images/generations"),
        ("/k/KEY/images/edits/", "/k/KEY/v1/images/edits"),
        ("/x/images/edits", "/x/images/edits"),
    ],
)
def test_a_path_is_normalized(sent: str, served: str) -> None:
    assert normalized(sent) == served == normalized(served)


async def test_plugins_addresses_are_served() -> None:
    async with client(serving(RESULT), api_key="secret") as http:
        for path in ("//ping", "/k/secret//ping", "//k//secret//ping/", "/k/secret/ping"):
            answer = await http.get(f"http://127.0.0.1{path}", headers={"X-API-Key": "secret"})
            assert answer.status_code == 200, path
        assert (await http.post("/k/secret//txt2img/", data={"prompt": "x"})).status_code == 200
        assert (await http.get("/k/secret/")).headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("path", ["/ping%0a", "/txt2img%0A", "/models/%0a", "/static/page.js%0a"])
async def test_an_address_with_a_newline_is_another_one(path: str) -> None:
    async with client(serving(RESULT)) as http:
        answer = await http.get(path)
    assert answer.status_code == 404 and answer.json()["status"] == "failure"


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP, identity", "identity, gzip"])
async def test_a_compressed_body_is_refused_with_a_sentence(encoding: str) -> None:
    async with client(serving(RESULT)) as http:
        answer = await http.post("/txt2img", content=b"\x1f\x8b\x08", headers={"Content-Encoding": encoding})
        assert answer.status_code == 415 and "uncompressed" in answer.json()["message"]
        assert (
            await http.post("/txt2img", content=b"prompt=x", headers={"Content-Encoding": "identity"})
        ).status_code == 200


@pytest.mark.parametrize("path", ["/custom_models/", "//custom_models", "/k/secret//custom_models/"])
async def test_a_fault_behind_a_mended_address_is_still_json(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers for a fault is outside of what mends the address."""

    def broken(_: CustomModels) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(CustomModels, "listing", broken)
    async with client(serving(RESULT), api_key="secret") as http:
        answer = await http.get(f"http://127.0.0.1{path}", headers={"X-API-Key": "secret", "X-Request-Id": "mine"})
    assert answer.status_code == 500 and answer.headers["x-request-id"] == "mine"
    assert answer.json() == {"status": "failure", "message": "This is a fault of the server; its log has the cause."}
