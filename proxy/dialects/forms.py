"""A dialect's body as fields, and fields as a native body.

The handlers' own parser is out of the proxy's reach, and refuses what these clients send: a field that comes twice.
"""

import json
import math
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from proxy.dialects.refused import Refused

MAX_FIELDS = 100
MAX_VALUE = 4000  # bytes of a field that the proxy itself reads
MAX_JSON_SIGNS = 100_000  # commas, colons and brackets: json.loads blocks the event loop meanwhile
MULTIPART = "multipart/form-data"
FORM_TYPES = ("application/x-www-form-urlencoded", "", "application/octet-stream")  # natively, all are such a form


def read_fields(body: bytes, content_type: str) -> dict[str, Any]:
    """The members of a JSON object, or the parts of a multipart form.

    A file is bytes, other parts are text. A part that comes twice, or whose name ends with `[]`, is in a list. Raises
    Refused 400.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.endswith("json") or body[:100].lstrip()[:1] == b"{":
        return _json(body)
    if kind == MULTIPART:
        return _multipart(body, content_type)
    raise Refused(
        400, "Send the fields as JSON, with Content-Type: application/json, or with images as multipart/form-data."
    )


def model_of(body: bytes, content_type: str) -> str:
    """The field `model` of a native body; empty without one. What is wrong with a body, the handler says.

    A body that does not have the word in it is not read at all. Raises Refused 400 for a model that is no text.
    """
    if b"model" not in body:
        return ""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in FORM_TYPES:
        return (form_value(body, b"model") or "").strip()
    try:
        model = read_fields(body, content_type).get("model")
    except Refused:
        return ""
    if model is not None and not isinstance(model, str):
        raise Refused(400, "model must be the name of a model, as text.", "model")
    return (model or "").strip()


def form_value(body: bytes, name: bytes) -> str | None:
    """A field of an urlencoded form, by a search that is quick in images, too; None without it."""
    start = name + b"="
    at = 0 if body.startswith(start) else body.find(b"&" + start) + 1  # within a value, & is escaped
    if not body.startswith(start, at):
        return None
    at += len(start)
    end = body.find(b"&", at)
    value = body[at : end if end >= 0 else None][:MAX_VALUE]  # of megabytes of escapes, everybody would wait
    return unquote_plus(value.decode("latin-1"))


def native_body(fields: Mapping[str, str | bytes]) -> tuple[bytes, str]:
    """A multipart form, in which files need no base64, and its Content-Type."""
    boundary = secrets.token_hex(16).encode()  # in no file but by a chance of 2**-128
    parts: list[bytes] = []
    for name, value in fields.items():
        file = b'; filename="file"' if isinstance(value, bytes) else b""
        head = b'Content-Disposition: form-data; name="' + name.encode() + b'"' + file
        content = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        parts += [b"--" + boundary, head, b"", content]
    return b"\r\n".join([*parts, b"--" + boundary + b"--", b""]), f"{MULTIPART}; boundary={boundary.decode()}"


def _json(body: bytes) -> dict[str, Any]:
    if sum(body.count(sign) for sign in (b",", b":", b"[", b"{")) > MAX_JSON_SIGNS:
        raise Refused(400, "The JSON body has far too many elements: send an object with the fields of this API.")

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise Refused(400, "The JSON body has a field twice: send it once.")
        if len(found) > MAX_FIELDS:
            raise Refused(400, f"The request has {len(found)} fields; the limit is {MAX_FIELDS}.")
        return found

    try:
        value = json.loads(body, object_pairs_hook=members, parse_constant=lambda _: None, parse_float=_finite)
    except RecursionError:
        raise Refused(400, "The JSON body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused(400, f"The body is not valid JSON at {where}: {error.msg}.") from None
    except ValueError:  # no UTF-8, or a number of thousands of digits
        raise Refused(400, "The body is not valid JSON: it is no UTF-8 text, or has too long a number.") from None
    if not isinstance(value, dict):
        raise Refused(400, "The JSON body must be an object.")
    return value


def _finite(text: str) -> float | None:
    """A number; None for one that is too large, as for `Infinity`: JSON has neither, and an answer may repeat it."""
    number = float(text)
    return number if math.isfinite(number) else None


def _multipart(body: bytes, content_type: str) -> dict[str, Any]:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise Refused(400, "The multipart body has no boundary in its Content-Type.")
    if body.count(b"--" + boundary) > MAX_FIELDS + 1:
        raise Refused(400, f"The request has more than {MAX_FIELDS} fields.")
    fields: dict[str, Any] = {}
    ended = False

    def on_part(part: Any) -> None:
        name = (part.field_name or b"").decode("utf-8", "replace")
        value: Any
        if hasattr(part, "file_object"):
            part.file_object.seek(0)
            value = part.file_object.read()
        else:
            value = _text(part.value or b"")
        plain = name.removesuffix("[]")
        if plain in fields or plain != name:
            before = fields.get(plain, [])
            value = [*(before if isinstance(before, list) else [before]), value]
        fields[plain] = value

    def on_end() -> None:
        nonlocal ended
        ended = True

    config: Any = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # never to a temporary file
    try:
        parser = FormParser(MULTIPART, on_part, on_part, on_end, boundary=boundary, config=config)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise Refused(400, "The multipart body is malformed: see RFC 7578.") from None
    if not ended:
        raise Refused(400, "The multipart body is cut short: its closing boundary is missing.")
    return fields


def _text(value: bytes) -> str | bytes:
    """Text; bytes if it is none, such as a file that was sent without a name."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
