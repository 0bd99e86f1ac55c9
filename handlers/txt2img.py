"""Entry point of the archive txt2img.mar. One class a file: TorchServe insists."""

from handlers import base_handler


class Txt2ImgHandler(base_handler.StableDiffusionHandler):
    tasks = ("txt2img",)
