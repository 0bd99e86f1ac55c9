"""Which answers are events."""

import pytest

from proxy.streaming import wants_events
from tests.support.torchserve import RESULT, client, serving


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("application/json, Text/Event-Stream;q=0.5", True),
        ("text/event-stream; q=0.001", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream ; Q=0.000, application/json", False),
    ],
)
def test_a_client_gets_events_if_it_accepts_them(accept: str, events: bool) -> None:
    assert wants_events(accept) is events


@pytest.mark.anyio
async def test_a_client_that_refuses_events_gets_one_json_body() -> None:
    lines = b'{"progress": {"step": 1, "of": 1}}\n'
    async with client(serving(lines, RESULT)) as http:
        headers = {"Accept": "application/json, text/event-stream;q=0"}
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers=headers)
    assert answer.headers["content-type"] == "application/json" and answer.json()["status"] == "success"
