"""The native answer as clients of AUTOMATIC1111's web UI read it: images, the request, and `info` as a text of JSON."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from handlers.wire import Result
from proxy.dialects.a1111_errors import refusal
from proxy.dialects.infotext import text_of, values_of
from proxy.dialects.refused import with_warnings
from proxy.errors import Failure
from proxy.jobs import Cancelled
from proxy.streaming import NativeAnswer

TIMESTAMP = "%Y%m%d%H%M%S"
CROPPED = (
    "width and height have no effect with inpaint_full_res: the masked part was generated at its own size, or at the "
    "model's if that is larger, and the answer has the init image's."
)


@dataclass
class A1111Answer(NativeAnswer):
    """The answer to one request, which is never a stream.

    Attributes:
        names: by native field, the name by which the client sent it.
        fields: the native fields, without images.
        parameters: the client's fields, to be answered with.
        warnings: sentences about what the dialect could not do as asked; the native ones are added.
        model: its title.
        clip_skip: as the web UI counts.
        styles: the names of those that were added to the prompts.
        crop_size: at which the client wants the crop of "only masked" to be generated, if it has a wish.
    """

    names: Mapping[str, str] = field()  # without the default that it inherits
    fields: Mapping[str, Any]
    parameters: Mapping[str, Any]
    warnings: Sequence[str]
    model: str
    clip_skip: int
    styles: Sequence[str] = ()
    crop_size: tuple[int, int] | None = None
    as_events: bool = False
    _began: str = field(default_factory=lambda: time.strftime(TIMESTAMP))

    def native(self, result: Result) -> dict[str, Any]:
        """The native answer, with all warnings."""
        native = json.loads(result.body)
        # clients that send the init image's size with it want just that
        is_other = any((image["width"], image["height"]) != self.crop_size for image in native["images"])
        more = [CROPPED] if self.crop_size and is_other else []
        return with_warnings(native, [*self.warnings, *more], self.names)

    def response(self, result: Result) -> Response:
        native = self.native(result)
        return self._response(native["images"], native.get("warnings", []))

    def refusal(self, failure: Failure) -> Response:
        if isinstance(failure, Cancelled):  # there, an interrupted request is answered with what it has
            return self._response([], [*self.warnings, "The request was interrupted before it had all images."])
        return refusal(failure, self.names)

    def _response(self, images: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> Response:
        # json.dumps takes 5 ms a megabyte to look for what must be escaped, and base64 has nothing
        texts = ", ".join(f'"{image["base64"]}"' for image in images)
        rest = json.dumps({"parameters": self.parameters, "info": json.dumps(self._info(images, warnings))})
        return Response(f'{{"images": [{texts}], {rest[1:]}', media_type="application/json")

    def _info(self, images: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> dict[str, Any]:
        """Strict clients want every member, and of its type: they throw an image away for one null."""
        prompt, negative = self.fields["prompt"], self.fields.get("negative_prompt", "")
        seeds = [image["seed"] for image in images]
        texts = [text_of(base64.b64decode(image["base64"])) for image in images]
        used = values_of(texts[0]) if texts else {}
        first = images[0] if images else {"width": 0, "height": 0}
        strength = self.fields.get("strength", self.fields.get("hires_strength"))
        subseeds = [image.get("variation_seed", 0) for image in images]
        return {
            "prompt": prompt, "all_prompts": [prompt] * len(images),
            "negative_prompt": negative, "all_negative_prompts": [negative] * len(images),
            "seed": seeds[0] if seeds else int(self.fields.get("seed", -1)), "all_seeds": seeds,
            "subseed": subseeds[0] if subseeds else 0, "all_subseeds": subseeds,
            "subseed_strength": float(self.fields.get("variation_strength", 0)),
            "width": first["width"], "height": first["height"],
            "sampler_name": used.get("Sampler") or self.fields["scheduler"],
            "cfg_scale": float(self.fields["guidance_scale"]),
            "steps": int(self.fields["num_inference_steps"]),
            "batch_size": int(self.fields["num_outputs"]),
            "restore_faces": False, "face_restoration_model": None,
            "sd_model_name": self.model, "sd_model_hash": "", "sd_vae_name": None, "sd_vae_hash": None,
            "seed_resize_from_w": -1, "seed_resize_from_h": -1,
            "denoising_strength": None if strength is None else float(strength),
            "extra_generation_params": {"Warnings": " ".join(warnings)} if warnings else {},
            "index_of_first_image": 0, "infotexts": texts, "styles": [*self.styles], "job_timestamp": self._began,
            "clip_skip": self.clip_skip, "is_using_inpainting_conditioning": False, "version": "sd-api-server",
        }  # fmt: skip
