"""Bodies of dialects: what is read is a dictionary or a refusal, and a native body says what was meant."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.forms import MAX_FIELDS, native_body, read_fields
from proxy.dialects.refused import Refused

KINDS = ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=x", "text/plain"]
FORM = "multipart/form-data; boundary=x"


def part(name: str, value: str, more: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'.encode()


BODIES = st.binary(max_size=300) | st.text('{}[]:,"ab01\\u-x\r\n=;', max_size=80).map(str.encode)


@given(BODIES, st.sampled_from(KINDS))
def test_any_body_is_read_or_refused(body: bytes, kind: str) -> None:
    try:
        assert isinstance(read_fields(body, kind), dict)
    except Refused as refused:
        assert refused.status == 400 and refused.message.endswith(".")


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text('aß\r\n-"\0') | st.binary(min_size=1)))
def test_a_native_body_has_what_was_put_in(fields: dict[str, Any]) -> None:
    assert read_fields(*native_body(fields)) == fields


def test_what_comes_twice_and_in_brackets_is_a_list() -> None:
    file = '; filename="a"'
    body = (
        part("image[]", "1", file) + part("image[]", "2", file) + part("mask[]", "3") + part("n", "4") + part("n", "5")
    )
    assert read_fields(body + b"--x--\r\n", FORM) == {"image": [b"1", b"2"], "mask": ["3"], "n": ["4", "5"]}


def test_a_file_without_a_name_and_a_text_with_a_type() -> None:
    body = part("n", "2", "\r\nContent-Type: text/plain") + part("image", "").replace(b"\r\n\r\n", b"\r\n\r\n\xff\xd8")
    assert read_fields(body + b"--x--\r\n", FORM) == {"n": "2", "image": b"\xff\xd8"}


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (b"".join(part(f"f{i}", "") for i in range(MAX_FIELDS + 2)), FORM, "more than 100 fields"),
        (b"{" + b",".join(b'"f%d": 1' % i for i in range(MAX_FIELDS + 1)) + b"}", "application/json", "101 fields"),
        (b"[" * 100_001, "application/json", "far too many"),
        (part("n", "1"), FORM, "cut short"),
        (part("n", "1"), "multipart/form-data", "no boundary"),
        (b"--x\r\nnothing", FORM, "malformed|cut short"),
        (b'{"a": ' + b"9" * 9999 + b"}", "application/json", "not valid JSON"),
    ],
)
def test_what_is_refused(body: bytes, kind: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        read_fields(body, kind)
