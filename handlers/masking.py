"""Entry point of the archive masking.mar. One class a file: TorchServe insists."""

from handlers import base_handler


class MaskingHandler(base_handler.StableDiffusionHandler):
    tasks = ("masking",)
