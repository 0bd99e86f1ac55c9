"""Entry point of the archive masking.mar. One class a file: TorchServe insists."""

from handlers import handler


class MaskingHandler(handler.StableDiffusionHandler):
    tasks = ("masking",)
