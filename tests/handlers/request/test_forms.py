import json

import pytest

from handlers.errors import InvalidRequest
from handlers.request.forms import FORM, JSON, MULTIPART, parse_body


def test_urlencoded_fields_are_unescaped_once() -> None:
    body = b"prompt=a+red+apple%2C+50%25&seed=3&data=a%2Bb%2Fc%3D%0A&twice=%252B&empty="
    assert parse_body(body, FORM, 10) == {
        "prompt": b"a red apple, 50%",
        "seed": b"3",
        "data": b"a+b/c=\n",
        "twice": b"%2B",
        "empty": b"",
    }


def test_a_body_without_content_type_is_read_as_a_form() -> None:
    assert parse_body(b"prompt=x", "", 10) == {"prompt": b"x"}


@pytest.mark.parametrize("kind", ["", FORM, "text/plain;charset=UTF-8", f"{MULTIPART}; boundary=x", "text/json"])
@pytest.mark.parametrize("body", [b'{"prompt": "x"}', b" \n[1]", b'\xef\xbb\xbf{"prompt": "x"}'])
def test_json_under_another_content_type_is_told_its_own(body: bytes, kind: str) -> None:
    with pytest.raises(InvalidRequest, match="looks like JSON: send it with the header Content-Type: application/json"):
        parse_body(body, kind, 10)


def test_an_empty_body_has_no_fields() -> None:
    assert parse_body(b"", FORM, 10) == {}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"prompt=a&prompt=b", "'prompt' comes twice"),
        (b"prompt=a&p%72ompt=b", "'prompt' comes twice"),
        (b"prompt", "no '='"),
        (b"prompt=%zz", "bad percent-escape: write a '%' within a value as %25"),
        (b"prompt=100%", "bad percent-escape: write a '%' within a value as %25"),
        (b"prompt=" + b"%41" * 100_001, "too many percent-escapes: send images as base64 text"),
        (b"%ff=1", "not valid UTF-8"),
        (b"&".join(b"f%d=1" % i for i in range(11)), "11 fields; the limit is 10"),
    ],
)
def test_malformed_forms_say_what_is_wrong(body: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        parse_body(body, FORM, 10)


def _multipart(*parts: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"--XX\r\n" + head + b"\r\n\r\n" + value + b"\r\n" for head, value in parts) + b"--XX--\r\n"


PROMPT = b'Content-Disposition: form-data; name="prompt"'
FILE = b'Content-Disposition: form-data; name="init_image"; filename="a.png"\r\nContent-Type: image/png'


def test_multipart_takes_text_and_files() -> None:
    body = _multipart((PROMPT, "größer".encode()), (FILE, bytes(range(256))))
    assert parse_body(body, f"{MULTIPART}; boundary=XX", 10) == {
        "prompt": "größer".encode(),
        "init_image": bytes(range(256)),
    }


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (_multipart((PROMPT, b"a"), (PROMPT, b"b")), "; boundary=XX", "comes twice"),
        (_multipart((PROMPT, b"a"))[:-8], "; boundary=XX", "cut short|malformed"),
        (b"rubbish", "; boundary=XX", "malformed: its boundaries"),
        (_multipart((b"Content-Disposition: form-data", b"a")), "; boundary=XX", "each part needs a header like"),
        (_multipart((PROMPT, b"a")), "", "no boundary"),
        (_multipart((PROMPT, b"a")), "; boundary=" + "B" * 5000, "malformed"),
        (_multipart(*[(PROMPT, b"a")] * 11), "; boundary=XX", "the limit is 10"),
    ],
)
def test_malformed_multipart_says_what_is_wrong(body: bytes, content_type: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        parse_body(body, MULTIPART + content_type, 10)


def test_json_keeps_its_types() -> None:
    assert parse_body(b'{"prompt": "a", "seed": 3, "eta": 0.5}', JSON, 10) == {"prompt": "a", "seed": 3, "eta": 0.5}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "not valid JSON at line 1, column 2: "),
        (b" ", "JSON body is empty"),
        (b"[]", "must be an object"),
        (b'{"prompt": "a", "prompt": "b"}', "comes twice"),
        (b'{"guidance_scale": NaN}', "not finite"),
        (b'{"guidance_scale": -Infinity}', "not finite"),
        (b"[" * 90_000, "nested too deeply"),
        (b'{"a":[' + b"1," * 200_000 + b"1]}", "far too many elements"),
        (b'{"seed": ' + b"1" * 10_000 + b"}", "a number that is too long"),
        (b'{"prompt": "\xff"}', "not valid JSON"),
        (json.dumps({f"f{i}": 1 for i in range(11)}).encode(), "11 fields; the limit is 10"),
    ],
)
def test_malformed_json_says_what_is_wrong(body: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        parse_body(body, JSON, 10)


def test_other_content_types_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="text/xml is not supported"):
        parse_body(b"<a/>", "text/xml", 10)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"prompt": "x"}', "looks like JSON: send it with the header Content-Type: application/json."),
        (b' \n[{"prompt": "x"}]', "looks like JSON"),
        (b"prompt=salt & pepper", "' pepper' has no '='"),
        (b"prompt=salt & pepper", "write a '&' within a value as %26"),
        (b"prompt=100 % wool", "write a '%' within a value as %25"),
        (b"\x1f\x8b\x08\x00prompt=x", "compressed with gzip: send it uncompressed"),
    ],
)
def test_a_sentence_says_how_to_mend_it(body: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_body(body, FORM, 100)
    assert sentence in refused.value.message and "b'" not in refused.value.message


def test_a_file_instead_of_a_form_is_named() -> None:
    with pytest.raises(InvalidRequest, match="The body is an image's file: send it as a field of a form"):
        parse_body(b"\x89PNG\r\n\x1a\n&&&", FORM, 10)
    assert parse_body("prompt=Möwe".encode(), FORM, 10) == {"prompt": "Möwe".encode()}
