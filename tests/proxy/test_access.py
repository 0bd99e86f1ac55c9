"""Who comes in: keys, names, and pages."""

import logging
from typing import Any

import pytest

from tests.support.torchserve import RESULT, client, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/txt2img", {}, 401),
        ("/txt2img", {"Authorization": "Bearer wrong"}, 401),
        ("/txt2img", {"Authorization": "Basic secret"}, 401),
        ("/txt2img", {"Authorization": "Basic YW55OnNlY3JlCg=="}, 401),
        ("/txt2img", {"Authorization": "Basic YW55OnNlY3JldA=="}, 200),  # any:secret
        ("/txt2img", {"Authorization": "basic OnNlY3JldA=="}, 200),  # :secret
        ("/txt2img", {"Authorization": "Basic ", "X-API-Key": "secret"}, 200),
        ("/txt2img", {"X-API-Key": "secre"}, 401),
        ("/txt2img", {"X-API-Key": "größe".encode("latin-1")}, 401),
        ("/k/wrong/txt2img", {}, 401),
        ("/k/secret", {}, 401),
        ("/txt2img", {"Authorization": "Bearer secret"}, 200),
        ("/txt2img", {"Authorization": "bearer other"}, 200),
        ("/txt2img", {"X-API-Key": "secret"}, 200),
        ("/k/secret/txt2img", {}, 200),
    ],
)
async def test_a_key_opens(path: str, headers: dict[str, Any], status: int) -> None:
    async with client(serving(RESULT), api_key="secret, other") as http:
        answer = await http.post(path, data={"prompt": "x"}, headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["status"] == "failure" and "/k/KEY" in answer.json()["message"]
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/k/WRONG/txt2img", {}),
        ("/masking", {}),
        ("/k/secret/img2img", {"Origin": "http://evil.example"}),
        ("/k/secret/custom/x", {"Host": "evil.example"}),
    ],
)
async def test_failures_of_access_are_answered_with_200_where_that_is_set(path: str, headers: dict[str, str]) -> None:
    async with client(serving(RESULT), api_key="secret", failures_as_200=True) as http:
        answer = await http.post(path, data={"prompt": "x"}, headers=headers)
        assert answer.status_code == 200 and answer.json()["status"] == "failure"
        assert (await http.get("/k/WRONG/models")).status_code == 401


async def test_probes_need_no_key_and_all_else_does() -> None:
    async with client(serving(RESULT), api_key="secret") as http:
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/ping", 401), ("/metrics", 401), ("/models", 401)):
            assert (await http.get(path)).status_code == status, path
        assert (await http.get("/k/secret/ping")).json() == {"status": "success"}


@pytest.mark.parametrize(
    "host", ["127.0.0.1/healthz?", "127.0.0.1/healthz#", r"127.0.0.1\\healthz", "x@127.0.0.1", "127.0.0.1:x"]
)
async def test_no_name_makes_another_path_of_a_request(host: str) -> None:
    async with client(serving(RESULT), api_key="secret", allowed_hosts="*") as http:
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers={"Host": host})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1337", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("192.0.2.7:1337", 200), ("sd.example", 200),
        ("SD.example:8080", 200), ("evil.example", 400), ("localhost.evil.example", 400), ("[", 400), ("", 400),
    ],
)  # fmt: skip
async def test_only_addresses_and_known_names(host: str, status: int) -> None:
    async with client(serving(RESULT), allowed_hosts="sd.example") as http:
        answer = await http.get("/ping", headers={"Host": host})
    assert answer.status_code == status
    assert status == 200 or "SD_ALLOWED_HOSTS" in answer.json()["message"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200), ("http://127.0.0.1", 200), ("https://app.example", 200), ("null", 403),
        ("http://evil.example", 403), ("http://[", 403), ("http://127.0.0.1@evil.example", 403),
        ("", 403), ("http://127.0.0.1:8000", 403), ("https://app.example.evil", 403),
    ],
)  # fmt: skip
async def test_foreign_pages_may_not(origin: str | None, status: int) -> None:
    async with client(serving(RESULT), allowed_origins="https://app.example") as http:
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers={} if origin is None else {"Origin": origin})
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == (origin if origin == "https://app.example" else None)


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key",
             "Access-Control-Request-Private-Network": "true"}  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "origin", "allowed"),
    [
        ("https://app.example", "https://app.example", "https://app.example"),
        ("https://App.example/, null", "https://app.example", "https://app.example"),
        ("https://app.example/,null", "null", "null"),
        ("*", "https://any.example", "*"),
        ("*", "null", "*"),
        ("", "http://127.0.0.1", "http://127.0.0.1"),  # the server's own page
    ],
)
async def test_an_allowed_page_may_ask_beforehand(setting: str, origin: str, allowed: str) -> None:
    async with client(serving(RESULT), allowed_origins=setting, api_key="secret") as http:
        asked = await http.options("/txt2img", headers={**PREFLIGHT, "Origin": origin})
        assert asked.status_code == 200 and asked.headers["access-control-allow-headers"] == "x-api-key"
        assert asked.headers["access-control-allow-private-network"] == "true"
        for key, status in (("secret", 200), ("wrong", 401)):
            headers = {"Origin": origin, "X-API-Key": key}
            answer = await http.post("/txt2img", data={"prompt": "x"}, headers=headers)
            assert answer.status_code == status
            assert not setting or answer.headers["access-control-allow-origin"] == allowed
        assert asked.headers["access-control-allow-origin"] == allowed


@pytest.mark.parametrize("setting", ["", "https://app.example"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
async def test_another_page_is_told_the_setting(setting: str, origin: str) -> None:
    async with client(serving(RESULT), allowed_origins=setting) as http:
        refused = await http.options("/txt2img", headers={**PREFLIGHT, "Origin": origin})
    assert refused.status_code == 403 and "SD_ALLOWED_ORIGINS" in refused.json()["message"]
    assert "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-private-network" not in refused.headers


async def test_the_log_has_an_id_and_neither_key_nor_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "proxy")
    async with client(serving(RESULT), api_key="secret") as http:
        answer = await http.post("/k/secret/txt2img", data={"prompt": "very private"}, headers={"X-Request-Id": "abc"})
        assert answer.headers["x-request-id"] == "abc"
        assert len((await http.get("/k/wrong/" + "x" * 50)).headers["x-request-id"]) == 32
    assert "POST /txt2img 200" in caplog.text and "abc" in caplog.text
    assert "secret" not in caplog.text and "private" not in caplog.text and "wrong" not in caplog.text
