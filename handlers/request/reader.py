"""Single fields of a request: read, checked, and refused with a sentence that says what they may be."""

import contextlib
import math
import re
from collections.abc import Collection
from typing import Any

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest, TooLarge
from handlers.imaging.files import TAKEN, ImageFile, decode_base64, is_file, open_image
from handlers.imaging.sizes import SIZE_MULTIPLE, nearest_size
from handlers.request import forms

MAX_SEED = 2**53 - 1  # the largest integer that a JavaScript client can send back exactly
MAX_GUIDANCE = 1000.0  # far beyond what gives an image; float32 overflows from 1e37 on

FLAGS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off", ""), False)

_WHOLE = re.compile(r"[+-]?[0-9]{1,30}(\.0{1,10})?")
_COMMA = re.compile(r"[+-]?[0-9]{1,30},[0-9]{1,30}")  # as a number is written in half of Europe
_PERCENT = re.compile(r"([+-]?[0-9]{1,30}([.,][0-9]{1,30})?) ?%")
_REAL = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")


def _number_rule(name: str, value: object, low: float, high: float, above: bool) -> str:
    least = f"above {low:g}" if above else f"of at least {low:g}"
    most = "" if high == math.inf else f" and at most {high:g}"
    rule = f"{name} must be a number {least}{most}, not {forms.shown(value)}"
    if isinstance(value, str) and _COMMA.fullmatch(value):
        return f"{rule}: write it with a point, {value.replace(',', '.')}."
    if isinstance(value, str) and (percent := _PERCENT.fullmatch(value)):
        return f"{rule}: write it as {float(percent[1].replace(',', '.')) / 100:g}."
    return f"{rule}."


def _whole_rule(rule: str, value: object) -> str:
    """The sentence that refuses `value` for a whole number by `rule`."""
    if isinstance(value, str) and (_COMMA.fullmatch(value) or _PERCENT.fullmatch(value)):
        return f"{rule}, not {forms.shown(value)}: write it in digits alone."
    return f"{rule}, not {forms.shown(value)}."


class Reader:
    """Reads single fields. A blank number counts as absent: forms also send fields that were left blank."""

    def __init__(self, fields: forms.Fields) -> None:
        self._fields = fields

    def _scalar(self, name: str) -> str | int | float | None:
        value = self._fields.get(name)
        if isinstance(value, bytes):
            value = forms.text(value[:4000], name)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        if not isinstance(value, str):
            raise InvalidRequest(f"{name} must be a number, not {forms.shown(value)}.")
        return value.strip() or None

    def _integer(self, name: str) -> int | str | float | None:
        """The whole number, or else the field as it is, for the sentence that refuses it."""
        value = self._scalar(name)
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            return int(value.partition(".")[0])
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def text(self, name: str, default: str | None, max_chars: int) -> str:
        value = self._fields.get(name)
        if value is None:
            if default is None:
                raise InvalidRequest(f"{name} is missing: send it, even if it is empty.")
            return default
        return self._text_of(name, value, max_chars)

    @staticmethod
    def _text_of(name: str, value: Any, max_chars: int) -> str:
        if not isinstance(value, (bytes, str)):
            raise InvalidRequest(f"{name} must be text, not {forms.shown(value)}.")
        # before it is decoded: a character has at most four bytes
        if len(value) > 4 * max_chars or len(decoded := forms.text(value, name)) > max_chars:
            raise InvalidRequest(f"{name} is longer than {max_chars} characters: shorten it.")
        return decoded

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """One of `choices`; `default` if the field is absent or blank."""
        value = self.text(name, "", 100).strip().lower() or default
        if value != default and value not in choices:
            raise InvalidRequest(f"{name} must be one of {', '.join(choices)}, not {forms.shown(value)}.")
        return value

    def named(self, name: str, names: Collection[str]) -> str | None:
        """One of `names`, in any case; None if the field is absent or blank."""
        text = self.text(name, "", 200).strip()
        if text in names:
            return text
        found = next((one for one in names if one.lower() == text.lower()), None)
        if text and found is None:
            if not names:
                raise InvalidRequest(f"{name} cannot be {forms.shown(text)}: none is installed on this server.")
            raise InvalidRequest(f"{name} must be one of {', '.join(names)}, not {forms.shown(text)}.")
        return found

    def flag(self, name: str) -> bool:
        """True or false; false if the field is absent or blank."""
        value = self._fields.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, (bool, int, float)):
            value = str(value)
        if isinstance(value, (dict, list)):
            raise InvalidRequest(f"{name} must be true or false, not {forms.shown(value)}.")
        word = self._text_of(name, value, 100).strip().lower() if value is not None else ""
        if word not in FLAGS:
            raise InvalidRequest(f"{name} must be true or false, not {forms.shown(word)}.")
        return FLAGS[word]

    def seed(self, name: str) -> int:
        """0 for a random one."""
        value = self._integer(name)
        if value is None or value == -1:  # as other servers say it
            return 0
        if not isinstance(value, int) or not 0 <= value <= MAX_SEED:
            rule = f"{name} must be a whole number from 1 to {MAX_SEED}, or 0 or -1 for a random one"
            raise InvalidRequest(_whole_rule(rule, value))
        return value

    def whole(self, name: str, default: int | None, low: int, high: int) -> Any:
        """A whole number from `low` to `high`; `default` if the field is absent or blank."""
        value = self._integer(name)
        if value is None:
            return default
        if not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequest(_whole_rule(f"{name} must be a whole number from {low} to {high}", value))
        return value

    def size(self, name: str, default: int, config: HandlerConfig) -> int:
        low, high = config.min_size, config.max_size
        value = self._integer(name)
        if value is None:
            return default
        rule = f"{name} must be a multiple of {SIZE_MULTIPLE} from {low} to {high}"
        if isinstance(value, str):
            raise InvalidRequest(_whole_rule(rule, value))
        if not isinstance(value, int) or value % SIZE_MULTIPLE or not low <= value <= high:
            nearest = nearest_size(int(max(low, min(high, value))), low, high)
            raise InvalidRequest(f"{rule}, not {forms.shown(value)}: the nearest is {nearest}.")
        return value

    def real(self, name: str, default: float, low: float, high: float = math.inf, above: bool = False) -> float:
        """A finite number from `low`, or above it, to `high`."""
        value = self._scalar(name)
        if value is None:
            return default
        number = math.nan
        if not isinstance(value, str) or _REAL.fullmatch(value):
            with contextlib.suppress(OverflowError):
                number = float(value)
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise InvalidRequest(_number_rule(name, value, low, high, above))
        return number

    def has(self, name: str) -> bool:
        """Whether the field was sent and is not blank."""
        return self._fields.get(name) not in (None, "", b"")

    def image(self, name: str, config: HandlerConfig) -> ImageFile:
        """base64 text, or the file's own bytes from a multipart form."""
        value = self._fields.get(name)
        if value is None:
            raise InvalidRequest(f"{name} is missing: send {TAKEN} as base64.")
        if isinstance(value, str):
            value = value.encode("ascii", "replace")
        if not isinstance(value, bytes):
            raise InvalidRequest(f"{name} must be an image as base64 text, not {forms.shown(value)}.")
        as_file = is_file(value)
        if len(value) > config.max_image_bytes * (1 if as_file else 4 / 3) + 1024:
            raise TooLarge(
                f"{name} is larger than {config.max_image_bytes} bytes: send a smaller or more compressed image."
            )
        return open_image(value if as_file else decode_base64(value, name), name, config.max_image_pixels)


def check_strength(name: str, strength: float, steps_name: str, steps: int) -> None:
    """Raises InvalidRequest for a strength that leaves none of the steps, as diffusers counts them."""
    if int(steps * strength) < 1:
        raise InvalidRequest(
            f"{name} {strength:g} of {steps} {steps_name} leaves no step to run: {name} x {steps_name} must be at "
            "least 1."
        )
