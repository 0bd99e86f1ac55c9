"""A dialect's fields on their way to native ones: each is taken once, and what is left has had no effect."""

from collections.abc import Mapping
from typing import Any

from proxy.dialects.refused import Refused

SIDE_STEP = 8  # pixels: natively, sides are multiples of it
MAX_NAMED = 20  # fields without effect that a warning names


class Translation:
    """Takes a client's fields by name. A blank or null one counts as absent, but for a prompt, which may be empty.

    Attributes:
        native: the native fields so far; files are bytes.
        names: by native field, the name by which the client sent it.
        warnings: sentences about what could not be done as asked.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._left = {
            name: value for name, value in fields.items()
            if value is not None and (value not in ("", b"", []) or name == "prompt")
        }  # fmt: skip
        self.native: dict[str, str | bytes] = {}
        self.names: dict[str, str] = {}
        self.warnings: list[str] = []

    def put(self, native: str, name: str, value: str | bytes) -> None:
        """A native field, and the name by which the client knows it."""
        self.native[native], self.names[native] = value, name

    def has(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, default: Any) -> Any:
        """A field as it came."""
        return self._left.pop(name, default)

    def text(self, name: str) -> str:
        """A field as text; empty if it is absent. Raises Refused 400 for lists, objects and files."""
        value = self.take(name, "")
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, (str, int, float)):
            kind = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a file"
            raise Refused(400, f"{name} must be text or a number, not {kind}.", name)
        return str(value).strip() if name != "prompt" else str(value)

    def passes(self, native: str, *names: str) -> None:
        """A field that goes on as it is, by whichever of its names. Raises Refused 400 if it comes by two."""
        sent = [name for name in names if name in self._left]
        if len(sent) > 1:
            raise Refused(400, f"{' and '.join(sent)} mean the same: send one of them.", sent[1])
        self.names[native] = (sent or names)[0]
        if sent:
            self.native[native] = self.text(sent[0])

    def pictures(self, *names: str) -> list[str | bytes]:
        """The images of a field: files, base64 text, or OpenAI's objects. Raises Refused 400 for anything else."""
        name = next((name for name in names if name in self._left), names[0])
        value = self.take(name, [])
        return [_picture(one, name) for one in (value if isinstance(value, list) else [value])]

    def picture(self, name: str) -> str | bytes | None:
        """The one image of a field, if there is one. Raises Refused 400 for anything else."""
        value = self.take(name, None)
        return None if value is None else _picture(value, name)

    def refuses(self, beginnings: tuple[str, ...], sentence: str) -> None:
        """Raises Refused 400 for a field whose name begins in one of these ways: the name, then the sentence."""
        for name in self._left:
            if name.startswith(beginnings):
                raise Refused(400, f"{ascii(name[:50])[1:-1]} {sentence}", name[:50])

    def warn_of_rest(self, within: str = "") -> None:
        """A warning that names what was not taken. A value is not shown: it may be a secret of another server's.

        Args:
            within: what stands before each name, such as `settings.`.
        """
        left = [name for name, value in self._left.items() if value != "auto"]
        named = [within + (ascii(name[:50])[1:-1] or "a field without a name") for name in left][:MAX_NAMED]
        if named:
            verb = "has" if len(named) == 1 else "have"
            self.warnings.append(f"{', '.join(named)} {verb} no effect here.")


def _picture(value: Any, name: str) -> str | bytes:
    if isinstance(value, dict) and value.get("file_id"):
        raise Refused(400, f"{name} cannot be a file_id, since no files are stored here: send the image itself.", name)
    if isinstance(value, dict):
        value = value.get("image_url")
    if isinstance(value, dict):  # as the chat API has it
        value = value.get("url")
    if not isinstance(value, (str, bytes)) or not value:
        raise Refused(400, f"{name} must be an image: a file, base64 text or a data: address.", name)
    if isinstance(value, str) and value[:8].lower().startswith(("http:", "https:")):
        raise Refused(400, f"{name} cannot be fetched from an address: send it as a file, or as a data: address.", name)
    return value
