"""Entry point of the archive txt2img.mar. One class a file: TorchServe insists."""

from handlers import handler


class Txt2ImgHandler(handler.StableDiffusionHandler):
    tasks = ("txt2img",)
