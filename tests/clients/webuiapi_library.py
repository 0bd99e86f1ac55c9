"""Run by the Python that has webuiapi: uses the server at argv[1], prints what the library made of it."""

import json
import sys
from importlib.metadata import version

import webuiapi
from PIL import Image

api = webuiapi.WebUIApi(baseurl=f"{sys.argv[1]}/sdapi/v1")
seen = {"version": version("webuiapi"), "models": api.util_get_model_names(), "current": api.util_get_current_model()}
seen["samplers"], seen["schedulers"] = api.util_get_sampler_names(), api.util_get_scheduler_names()
lists = (
    api.get_sd_vae, api.get_upscalers, api.get_latent_upscale_modes, api.get_loras, api.get_hypernetworks,
    api.get_face_restorers, api.get_realesrgan_models, api.get_prompt_styles, api.refresh_checkpoints, api.get_scripts,
    api.get_embeddings, api.get_memory, api.get_cmd_flags, api.controlnet_model_list,
)  # fmt: skip
seen["lists"] = {one.__name__: one() for one in lists}

answer = api.txt2img(
    prompt="a red apple", negative_prompt="blurred", seed=3, steps=4, width=256, height=256, batch_size=2
)
seen["txt2img"] = [[image.size for image in answer.images], answer.info["all_seeds"], answer.info]
apple = answer.image
seen["png_info"] = api.png_info(apple).info

half = Image.new("L", apple.size)
half.paste(255, (0, 0, 128, 256))
answer = api.img2img(images=[apple], mask_image=half, prompt="a green apple", seed=5, steps=4, denoising_strength=0.8)
seen["img2img"] = [answer.image.size, answer.info]
seen["kept"] = answer.image.crop((160, 0, 256, 256)).tobytes() == apple.crop((160, 0, 256, 256)).tobytes()

seen["options"] = [api.set_options({"CLIP_stop_at_last_layers": 2}), api.get_options()["CLIP_stop_at_last_layers"]]
api.set_options({"CLIP_stop_at_last_layers": 1})
api.util_wait_for_ready(0.1)
seen["interrupted"] = api.interrupt()
try:
    api.txt2img(prompt="x", batch_size=9)
except RuntimeError as error:
    seen["error"] = [error.args[0], json.loads(error.args[1])["detail"]]
print(json.dumps(seen))
