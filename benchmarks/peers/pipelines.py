"""The plain diffusers pipelines behind the peers: one call generates one image, or several of a kind."""

import base64
import io
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from PIL import Image

Fields = dict[str, Any]  # of a request's JSON body


class Pipelines:
    """The pipelines of `model` on this machine's CPU, all on one set of weights."""

    def __init__(self, model: Path) -> None:
        text = AutoPipelineForText2Image.from_pretrained(model, dtype=torch.float32)
        self._of_task = {
            "txt2img": text,
            "img2img": AutoPipelineForImage2Image.from_pipe(text),
            "masking": AutoPipelineForInpainting.from_pipe(text),
        }
        for pipeline in self._of_task.values():
            pipeline.set_progress_bar_config(disable=True)
        self.generate([{"task": "txt2img", "prompt": "", "seed": 1, "num_inference_steps": 2}])

    def generate(self, requests: list[Fields]) -> list[Image.Image]:
        """One call for requests of the same `kind`."""
        first = requests[0]
        arguments: dict[str, Any] = {
            name: first[name]
            for name in ("num_inference_steps", "guidance_scale", "width", "height", "strength")
            if name in first
        }
        arguments["prompt"] = [fields["prompt"] for fields in requests]
        arguments["generator"] = [torch.Generator().manual_seed(fields["seed"]) for fields in requests]
        for field, argument in (("init_image", "image"), ("mask_image", "mask_image")):
            if field in first:
                arguments[argument] = [_image(fields[field]) for fields in requests]
        if first["task"] == "masking":  # else it generates at the model's native size
            arguments["width"], arguments["height"] = arguments["image"][0].size
        images: list[Image.Image] = self._of_task[first["task"]](**arguments).images
        return images


def kind(fields: Fields) -> tuple[Any, ...]:
    """What requests must have in common to be generated in one call."""
    size = _image(fields["init_image"]).size if "init_image" in fields else (fields["width"], fields["height"])
    return fields["task"], size, fields["num_inference_steps"], fields["guidance_scale"], fields.get("strength")


def _image(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")


def answer(image: Image.Image) -> dict[str, Any]:
    """The JSON that clients get."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"status": "success", "images": [{"base64": base64.b64encode(buffer.getvalue()).decode()}]}
