"""Entry point of the archive img2img.mar. One class a file: TorchServe insists."""

from handlers import base_handler


class Img2ImgHandler(base_handler.StableDiffusionHandler):
    tasks = ("img2img",)
