"""The two ends of the wire joined without a server: what one writes, the other reads."""

import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers import wire
from handlers.wire import Failed, Progress, RequestHead, Result, image_entry, read_line

latin = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40)
heads = st.builds(
    RequestHead,
    task=st.sampled_from([*wire.TASKS, wire.DESCRIBE, ""]),
    form_type=latin,
    request_id=st.from_regex(r"[A-Za-z0-9._-]{0,30}", fullmatch=True),
    deadline=st.one_of(st.just(math.inf), st.integers(0, 10**10).map(float)),
    wants_progress=st.booleans(),
)


@given(heads)
def test_a_head_arrives_as_it_was_sent(head: RequestHead) -> None:
    sent = {name.lower(): value.decode("latin-1") for name, value in head.headers().items()}
    assert RequestHead.read(lambda name: sent.get(name.lower())) == head


def test_a_deadline_that_is_no_number_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="X-Deadline must be a number"):
        RequestHead.read({"X-Deadline": "soon"}.get)


@pytest.mark.parametrize(
    "message",
    [
        Progress(3, 50),
        Progress(5, 50, "cHJldmlldw=="),
        Failed(507, "There is no room."),
        Failed(400, 'prompt must be text, not "…"\n.'),
        Result(b'{"models": []}'),
        Result.of_images([image_entry("aW1hZ2U=", 3, False, (8, 16)), image_entry("aW1hZ2U=", 4, True, (8, 16))]),
    ],
)
def test_a_message_arrives_as_it_was_written(message: Progress | Failed | Result) -> None:
    line = message.line()
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert read_line(line) == message == read_line(line.rstrip(b"\n"))
    json.loads(line)  # anybody who asks TorchServe itself reads them, too


def test_a_result_is_the_contracts_answer() -> None:
    answer = json.loads(Result.of_images([image_entry("aW1hZ2U=", 3, True, (8, 16))]).body)
    image = {"base64": "aW1hZ2U=", "seed": 3, "mimetype": "image/png", "mime_type": "image/png", "nsfw": True}
    image |= {"width": 8, "height": 16}
    assert answer == {"status": "success", "images": [image]}
    patch = image_entry("aW1hZ2U=", 3, True, (8, 16), "image/webp", (1, 2, 30, 40))
    answer = json.loads(Result.of_images([patch], ['a "sentence".']).body)
    image |= {"mimetype": "image/webp", "mime_type": "image/webp", "box": [1, 2, 30, 40]}
    assert answer == {"status": "success", "images": [image], "warnings": ['a "sentence".']}
    varied = json.loads(image_entry("aW1hZ2U=", 3, False, (8, 16), variation_seed=9))
    assert varied["variation_seed"] == 9 and "box" not in varied


def test_a_blank_line_says_nothing() -> None:
    assert read_line(b"\n") is read_line(b"") is None


@pytest.mark.parametrize(
    "line", [b"Prediction failed\n", b"[]\n", b"{}\n", b'{"progress": 3}\n', b'{"error": {}}\n', b"\xff"]
)
def test_a_line_that_no_handler_wrote_is_told_apart(line: bytes) -> None:
    with pytest.raises(ValueError, match="Not a line"):
        read_line(line)


def test_a_worker_that_cannot_start_says_why_on_one_line() -> None:
    line = wire.start_failure_line("The model\n cannot be loaded: " + 2000 * "x")
    assert "\n" not in line and len(line) < 1100
    said = wire.read_start_failure(f"2026-01-01 [INFO] {line}")
    assert said is not None and said.startswith("The model cannot be loaded: xxx")
    assert wire.read_start_failure("2026-01-01 [INFO] a line") is None


def test_it_needs_the_standard_library_alone() -> None:
    source = Path(wire.__file__).read_text(encoding="utf-8")
    imported = {
        line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))
    }
    assert imported <= sys.stdlib_module_names
