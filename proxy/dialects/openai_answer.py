"""The native answer as OpenAI's clients read it: images, events with partial images, and what was not done."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from handlers.wire import Progress, Result
from proxy.admission import Queued
from proxy.dialects.openai_errors import error_object, refusal
from proxy.dialects.refused import Refused, with_warnings
from proxy.errors import Failure
from proxy.kept import Kept, KeptImage
from proxy.streaming import event_bytes

FILES = "/v1/images/files/"  # below it, whoever knows an image's address may have it
# no tokens are counted here; clients that add the numbers up need them
USAGE = {
    "input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}  # fmt: skip


@dataclass
class OpenAIAnswer:
    """The answer to one request.

    Attributes:
        event_name: what the names of a stream's events begin with, `image_generation` or `image_edit`.
        names: by native field, the name by which the client sent it.
        warnings: sentences about what the dialect could not do as asked; the native ones are added.
        size: as it was asked for, `512x512`; None for `auto`.
        shown_size: that the images of the answer will have, for partial ones; None if it is not known.
        quality: the level, never `auto`.
        as_address: whether images are answered by address instead of base64.
        partial_images: how many previews a stream shows, at most.
        is_dalle: whether the client names one of the models that had another code for filtered images.
    """

    request: Request
    event_name: str
    names: Mapping[str, str]
    warnings: Sequence[str]
    output_format: str
    quality: str
    size: str | None = None
    shown_size: str | None = None
    as_address: bool = False
    as_events: bool = False
    partial_images: int = 0
    is_dalle: bool = False
    head_at_once = False
    _partials = 0  # sent so far

    def response(self, result: Result) -> Response:
        native = self.native(result)
        images = [self._image(image) for image in native["images"]]
        body = _json({**self._described(native), "data": images, "usage": USAGE}, self._texts(native))
        return Response(body, media_type="application/json")

    def refusal(self, failure: Failure) -> Response:
        return refusal(failure, self.names)

    def event(self, event: Queued | Progress) -> bytes:
        """A preview where the next of `partial_images` equal parts of the steps has passed."""
        if not isinstance(event, Progress) or event.preview is None or self._partials == self.partial_images:
            return b""
        if event.step * (self.partial_images + 1) < event.of * (self._partials + 1):
            return b""
        told = {
            "b64_json": "", "partial_image_index": self._partials, "created_at": int(time.time()),
            "size": self.shown_size or "auto", "quality": self.quality, "background": "opaque", "output_format": "jpeg",
        }  # fmt: skip
        self._partials += 1
        return self._event("partial_image", told, [event.preview])

    def last(self, result: Result) -> bytes:
        native = self.native(result)
        described = self._described(native)
        described["created_at"] = described.pop("created")
        return b"".join(
            self._event("completed", {**_entry(image), **described, "b64_json": "", "usage": USAGE}, [image["base64"]])
            for image in native["images"]
        )

    def error(self, failure: Failure) -> bytes:
        # libraries raise an error for nothing but this member
        return event_bytes("error", json.dumps({"error": error_object(failure, self.names)}).encode())

    def native(self, result: Result) -> dict[str, Any]:
        """The native answer, with all warnings. Raises Refused 400 where the filter blackened every image."""
        native: dict[str, Any] = json.loads(result.body)
        images = native["images"]
        if images and all(image["nsfw"] for image in images):
            message = "The safety checker of the model flagged every image: change the prompt."
            if self.is_dalle:
                raise Refused(400, message, code="content_policy_violation")
            stage = {"moderation_details": {"moderation_stage": "output"}}
            raise Refused(400, message, None, "moderation_blocked", "image_generation_user_error", stage)
        got = {f"{image['width']}x{image['height']}" for image in images}
        if self.size is not None and got and got != {self.size}:
            # only edits and variations, since a size that cannot be generated is refused
            was_not = f"size {self.size} was not applied: the answer has its image's size, {', '.join(got)}."
            native["warnings"] = [*native.get("warnings", []), was_not]
        return with_warnings(native, self.warnings, self.names)

    def _described(self, native: Mapping[str, Any]) -> dict[str, Any]:
        """The members beside the images."""
        first = native["images"][0]
        described = {
            "created": int(time.time()), "background": "opaque", "output_format": self.output_format,
            "quality": self.quality, "size": f"{first['width']}x{first['height']}",
        }  # fmt: skip
        return described | ({"warnings": native["warnings"]} if "warnings" in native else {})

    def _image(self, image: Mapping[str, Any]) -> dict[str, Any]:
        # one of the two: clients prefer different ones
        if not self.as_address:
            return {"b64_json": "", **_entry(image)}
        kept: Kept = self.request.app.state.kept
        file = KeptImage(base64.b64decode(image["base64"]), image["mime_type"])
        kept.check(len(file.data))
        name = kept.add(self.request.state.owner, file, "img_")
        kept.end(name, len(file.data))
        # access.py has checked the Host that this contains
        return {"url": f"{str(self.request.base_url).rstrip('/')}{FILES}{name}", **_entry(image)}

    def _texts(self, native: Mapping[str, Any]) -> list[str]:
        """The base64 of an answer's images."""
        return [] if self.as_address else [image["base64"] for image in native["images"]]

    def _event(self, name: str, members: Mapping[str, Any], texts: Sequence[str]) -> bytes:
        kind = f"{self.event_name}.{name}"
        return event_bytes(kind, _json({"type": kind, **members}, texts))


def _json(body: Mapping[str, Any], texts: Sequence[str]) -> bytes:
    """JSON with these texts for the members `b64_json`, which are empty in `body`.

    They are base64, and json.dumps takes 5 ms a megabyte to look for what must be escaped in them. No other text can
    contain such a member, since its quotation marks are escaped.
    """
    first, *rest = json.dumps(body).split('"b64_json": ""')
    parts = [f'"b64_json": "{text}"{after}' for text, after in zip(texts, rest, strict=True)]
    return "".join([first, *parts]).encode()


def _entry(image: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenAI's answers do not have; its libraries keep unknown members."""
    return {name: image[name] for name in ("seed", "nsfw", "width", "height")}
