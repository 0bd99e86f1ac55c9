"""Run by the Python that has sd-backend-client: uses the server at argv[1], prints what the library made of it."""

import json
import sys
from importlib.metadata import version

from PIL import Image
from sd_backend_client import DiffusionParams, GenerationError, connect_to_backend

backend = connect_to_backend(sys.argv[1])
seen = {"version": version("sd-backend-client"), "backend": type(backend).__name__}
lists = (
    backend.list_checkpoints, backend.list_vaes, backend.list_loras, backend.list_hypernetworks, backend.list_samplers,
    backend.list_schedulers, backend.list_upscalers, backend.list_controlnet_models,
)  # fmt: skip
seen["lists"] = {one.__name__: len(one()) for one in lists}
seen["capabilities"] = backend.get_capabilities().model_dump()

fields = {"prompt": "a red apple", "steps": 4, "seed": 3, "width": 256, "height": 256}
result = backend.submit_txt2img(DiffusionParams(batch_size=2, **fields)).wait()
seen["txt2img"] = [[image.size for image in result.images], result.seeds, result.raw_info.model_dump()]
apple = result.images[0].convert("RGB")

result = backend.submit_img2img(DiffusionParams(init_images=[apple], denoising_strength=0.6, **fields)).wait()
seen["img2img"] = [result.images[0].size, result.seeds]

half = Image.new("L", apple.size)
half.paste(255, (0, 0, 128, 256))
result = backend.submit_inpaint(DiffusionParams(init_images=[apple], mask=half, **fields)).wait()
kept = [image.convert("RGB").crop((160, 0, 256, 256)).tobytes() for image in (result.images[0], apple)]
seen["inpaint"] = [result.images[0].size, kept[0] == kept[1]]

handle, shown = backend.submit_txt2img(DiffusionParams(**fields | {"steps": 250, "batch_size": 4})), []


def until_shown(progress):
    if progress.preview is not None and not shown:
        shown.append([0 < progress.progress < 1, progress.preview.size])
        handle.cancel()


try:
    handle.wait(poll_interval=0.1, on_progress=until_shown)
except GenerationError:
    seen["cancelled"] = [shown, handle.poll().status.name, backend.progress_check().model_dump()]
try:
    backend.submit_txt2img(DiffusionParams(**fields | {"batch_size": 9})).wait()
except GenerationError as error:
    seen["error"] = str(error)
print(json.dumps(seen))
