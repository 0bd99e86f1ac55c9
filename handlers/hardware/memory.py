"""What fits on the device: rows of one forward, and images, by their measured needs."""

from dataclasses import dataclass

import torch

from handlers.errors import OutOfMemory
from handlers.hardware.device import available_bytes, is_broken, release_memory
from handlers.request.fields import GenerationRequest

GUIDED_ROWS = 2  # of one image with guidance: as a rule one with the prompt, one with the negative prompt
SHARE = 0.9  # of the free memory that is used: allocators leave gaps


@dataclass(frozen=True)
class Memory:
    """The measured needs of a model on its device. Without a measurement (see device.Peak) everything is admitted.

    Attributes:
        native_area: latent pixels of an image of native size.
        row_bytes: the bytes of one row of a UNet forward at native size, beyond the weights.
        image_bytes: the bytes for decoding an image of native size.
        decodes_beside: whether images are decoded while a forward runs.
        guided_rows: of one image with guidance.
    """

    device: torch.device
    native_area: int
    row_bytes: int = 0
    image_bytes: int = 0
    decodes_beside: bool = False
    guided_rows: int = GUIDED_ROWS

    def rows(self) -> int | None:
        """How many rows of native size one forward may have; None if that is unknown."""
        available = available_bytes(self.device) if self.row_bytes else None
        return None if available is None else max(1, int(SHARE * available / self.row_bytes))

    def admit(self, request: GenerationRequest, vae_scale_factor: int, fixed_size: bool = False) -> None:
        """Raises OutOfMemory for an image that does not fit even alone.

        Args:
            fixed_size: whether the model generates at a size of its own, so that asking for a smaller image is no help.
        """
        available = available_bytes(self.device) if self.row_bytes else None
        if available is None:
            return
        area = request.width * request.height / vae_scale_factor**2
        forward_bytes = self.guided_rows * self.row_bytes
        native = forward_bytes + self.image_bytes if self.decodes_beside else max(forward_bytes, self.image_bytes)
        needed = native * area / self.native_area
        if needed > available:
            shrink = (SHARE * available / needed) ** 0.5
            fits = [max(64, int(side * shrink) // 64 * 64) for side in (request.width, request.height)]
            advice = f"try {fits[0]} x {fits[1]}"
            if fixed_size:
                advice = "the model always generates at this size, so free memory there, or serve a smaller model"
            raise OutOfMemory(
                f"An image of {request.width} x {request.height} pixels needs {needed / 2**30:.1f} GiB of memory "
                f"on the device, but {available / 2**30:.1f} GiB are free: {advice}."
            )

    def release(self) -> None:
        release_memory(self.device)

    def is_broken(self) -> bool:
        return is_broken(self.device)


def no_room(request: GenerationRequest | None, fixed_size: bool) -> OutOfMemory:
    """The failure of a request for which memory ran out, with what helps; `fixed_size` as in `Memory.admit`."""
    helpful = [] if fixed_size else ["a smaller one"]
    if request is None or request.num_outputs > 1:
        helpful.append("a lower num_outputs")
    advice = f"try {', or '.join(helpful)}" if helpful else "free some on the device, or serve a smaller model"
    return OutOfMemory(f"There is not enough memory for this image: {advice}.")
