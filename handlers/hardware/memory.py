"""What fits on the device: rows of one forward, and pictures, by what they were measured to need."""

from dataclasses import dataclass

import torch

from handlers.errors import OutOfMemory
from handlers.hardware.device import available_bytes, release_memory
from handlers.request.fields import GenerationRequest

GUIDED_ROWS = 2  # of one image with guidance: with the prompt, and with the negative prompt
SHARE = 0.9  # of the free memory that is counted on: allocators leave gaps


@dataclass(frozen=True)
class Memory:
    """The measured needs of a model on its device. Without a measurement (see device.Peak) everything is let in.

    Attributes:
        native_area: latent pixels of a picture of native size.
        row_bytes: what one row of a UNet forward takes at native size, beyond the weights.
        image_bytes: what decoding a picture of native size takes.
        decodes_beside: whether that happens while a forward runs.
    """

    device: torch.device
    native_area: int
    row_bytes: int = 0
    image_bytes: int = 0
    decodes_beside: bool = False

    def rows(self) -> int | None:
        """How many rows of native size one forward may have; None if there is no telling."""
        available = available_bytes(self.device) if self.row_bytes else None
        return None if available is None else max(1, int(SHARE * available / self.row_bytes))

    def admit(self, request: GenerationRequest, vae_scale_factor: int) -> None:
        """Raises OutOfMemory for a picture that has no room even alone."""
        available = available_bytes(self.device) if self.row_bytes else None
        if available is None:
            return
        area = request.width * request.height / vae_scale_factor**2
        forward_bytes = GUIDED_ROWS * self.row_bytes
        native = forward_bytes + self.image_bytes if self.decodes_beside else max(forward_bytes, self.image_bytes)
        needed = native * area / self.native_area
        if needed > available:
            shrink = (SHARE * available / needed) ** 0.5
            fits = [max(64, int(side * shrink) // 64 * 64) for side in (request.width, request.height)]
            raise OutOfMemory(
                f"A picture of {request.width} x {request.height} pixels needs {needed / 2**30:.1f} GiB of memory "
                f"on the device, and {available / 2**30:.1f} GiB are free: try {fits[0]} x {fits[1]}."
            )

    def release(self) -> None:
        release_memory(self.device)
