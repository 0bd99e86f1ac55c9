"""Entry point of the archive img2img.mar. One class a file: TorchServe insists."""

from handlers import handler


class Img2ImgHandler(handler.StableDiffusionHandler):
    tasks = ("img2img",)
