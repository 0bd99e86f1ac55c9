"""Entry point of the combined archive stable-diffusion.mar: all three pipelines on one set of weights."""

from handlers import handler


class CombinedHandler(handler.StableDiffusionHandler):
    tasks = ("txt2img", "img2img", "masking")
