"""Bodies of dialects: what is read is a dictionary or a refusal, and a native body says what was meant."""

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.forms import MAX_FIELDS, form_value, model_of, native_body, read_fields
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


@given(st.lists(st.tuples(st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.text(max_size=5)), max_size=5))
def test_a_value_of_a_form_is_found_as_parsing_it_does(pairs: list[tuple[str, str]]) -> None:
    body = urlencode(pairs).encode()
    for name, _ in [*pairs, ("kind", "")]:
        assert form_value(body, name.encode()) == dict(reversed(pairs)).get(name)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"kind=a", "a"), (b"x=1&kind=a&y=2", "a"), (b"kind=", ""), (b"x=1&kind=&y", ""),
        (b"", None), (b"kind", None), (b"mankind=a", None), (b"x=kind=a", None), (b"x=%26kind=a", None),
        (b"kind=%C3%9F+%26x", "ß &x"), (b"xkind=a&kind=b", "b"), (b"kind=a&kind=b", "a"),
    ],
)  # fmt: skip
def test_a_value_of_a_form(body: bytes, value: str | None) -> None:
    assert form_value(body, b"kind") == value


def test_the_model_of_a_form() -> None:
    for kind in ("application/x-www-form-urlencoded; charset=utf-8", "", "application/octet-stream"):
        assert model_of(b"prompt=a+model&model=+ink+", kind) == "ink"
        assert model_of(b"prompt=a+model", kind) == model_of(b"prompt=x", kind) == ""


def test_what_comes_twice_and_in_brackets_is_a_list() -> None:
    file = '; filename="a"'
    body = (
        part("image[]", "1", file) + part("image[]", "2", file) + part("mask[]", "3") + part("n", "4") + part("n", "5")
    )
    assert read_fields(body + b"--x--\r\n", FORM) == {"image": [b"1", b"2"], "mask": ["3"], "n": ["4", "5"]}


def test_a_file_without_a_name_and_a_text_with_a_type() -> None:
    body = part("n", "2", "\r\nContent-Type: text/plain") + part("image", "").replace(b"\r\n\r\n", b"\r\n\r\n\xff\xd8")
    assert read_fields(body + b"--x--\r\n", FORM) == {"n": "2", "image": b"\xff\xd8"}


@pytest.mark.parametrize("kind", KINDS)
def test_json_is_read_under_any_content_type(kind: str) -> None:
    assert read_fields(b' \n{"n": 2}', kind) == {"n": 2}


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
