"""Previews: a small image of what a latent will become, without the VAE.

A latent's channels are nearly linear in the image's colours. So a map from its channels to red, green and blue, fitted
once to the model's own VAE, gives an image of an eighth of the size in hardly any time. It shows not the noisy latent
but the image x that the denoiser predicts behind it, as every scheduler of Stable Diffusion does: the latent is
z = sqrt(a) x + sqrt(1 - a) e, with the noise e and the timestep's share a of the image. The transformers are trained by
flow matching: z = (1 - s) x + s e, with the timestep's share s of the noise, and they predict e - x.
"""

import base64
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from handlers.forward.calls import DenoiserCall
from handlers.forward.side_stream import Event, fetch
from handlers.pipelines.families import denoiser_name

logger = logging.getLogger(__name__)

SHOWN = 10  # previews of an image, about
SIDE = 128  # pixels of the image that the map is fitted with
PATCH = 16  # pixels of its patches of one colour
FLOW = "flow_prediction"


@dataclass(frozen=True)
class Stepped:
    """What a flow-matching scheduler's `step` was called with.

    Attributes:
        predicted, latents: with guidance; packed latents where the pipeline has such.
        unpacked: makes (1, channels, h, w) of either.
    """

    predicted: torch.Tensor
    timestep: float
    latents: torch.Tensor
    unpacked: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Look:
    """A step of an image: the noisy latent and what was predicted, (2, channels, h, w), and the share a or s.

    `latents` is on the CPU, and has its numbers once `event` is done.
    """

    latents: torch.Tensor
    event: Event
    share: float


@dataclass(frozen=True)
class PreviewMap:
    """`rgb = latent @ weights + offset`, for rgb from 0 to 255: weights (channels, 3), offset (3,).

    `shares` of the timesteps and `prediction_type` are the scheduler's, which say what the predictions stand for.
    """

    weights: np.ndarray
    offset: np.ndarray
    shares: np.ndarray
    prediction_type: str

    @property
    def looks_back(self) -> bool:
        """Whether it shows the last step of a job, and not the present one."""
        return self.prediction_type == FLOW

    def look(self, call: DenoiserCall, output: Any, guidance_scale: float) -> Look:
        """What `render` needs of a UNet call. This is all of torch's work for a preview, in the engine's thread."""
        channels = len(self.weights)
        rows = output[0].float()
        made = rows[-1]
        if len(rows) == 2:  # without the prompt, and with it
            made = rows[0] + guidance_scale * (rows[1] - rows[0])
        timestep = min(max(int(torch.as_tensor(call.timestep).flatten()[-1]), 0), len(self.shares) - 1)
        latents, event = fetch(torch.stack([call.sample[-1, :channels].float(), made[:channels]]))
        return Look(latents, event, float(self.shares[timestep]))

    def look_back(self, stepped: Stepped) -> Look:
        """The same for a transformer, of its last step."""
        pair = torch.cat([stepped.unpacked(one) for one in (stepped.latents, stepped.predicted)]).float()
        latents, event = fetch(pair.flatten(1, -3))  # without the one frame of Qwen-Image's
        return Look(latents, event, stepped.timestep / len(self.shares))

    def render(self, look: Look) -> str:
        """The preview as a base64 JPEG of the latent's size. It computes nothing in torch: it runs beside the steps."""
        look.event.synchronize()
        sample, made = look.latents.numpy()
        signal, noise = max(look.share, 1e-4) ** 0.5, (1 - look.share) ** 0.5
        if self.prediction_type == FLOW:
            latent = sample - look.share * made
        elif self.prediction_type == "epsilon":
            latent = (sample - noise * made) / signal
        elif self.prediction_type == "v_prediction":
            latent = signal * sample - noise * made
        else:
            latent = made
        rgb = np.einsum("chw,cr->hwr", latent, self.weights) + self.offset
        image = Image.fromarray(np.nan_to_num(rgb).clip(0, 255).astype(np.uint8))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85, subsampling=0)
        return base64.b64encode(buffer.getbuffer()).decode("ascii")


def every(total_steps: int) -> int:
    """After how many steps the next preview is due."""
    return max(1, total_steps // SHOWN)


def fit_preview(pipeline: Any) -> PreviewMap | None:
    """The map of a pipeline's VAE: least squares over its own decoding of patches of many colours and of noise.

    The patches' latents are like an image's. The noise bounds directions that they leave open, if a model's latents
    have a dimension that its encoder does not use. None if the model gives no such numbers.
    """
    vae, scheduler = pipeline.vae, pipeline.scheduler
    if denoiser_name(pipeline) == "transformer":
        timesteps = scheduler.config.num_train_timesteps
        shares, prediction_type = torch.arange(timesteps) / timesteps, FLOW
    elif hasattr(scheduler, "alphas_cumprod"):
        shares, prediction_type = scheduler.alphas_cumprod, scheduler.config.prediction_type
    else:
        return None
    is_of_frames = "scaling_factor" not in vae.config  # as Qwen-Image's, which takes an image as a film of one frame
    scale: Any
    shift: Any
    if is_of_frames:
        mean, deviation = (torch.tensor(vae.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
        scale, shift = 1 / deviation, mean
    else:
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
    colours = np.random.default_rng(0).integers(0, 256, (SIDE // PATCH, SIDE // PATCH, 3), dtype=np.uint8)
    patches = Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.asarray(patches).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        device = pipeline._execution_device
        image = image.to(device, vae.dtype)
        encoded = vae.encode(image[:, :, None] if is_of_frames else image).latent_dist.mode()
        encoded = encoded[:, :, 0] if is_of_frames else encoded
        noise = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(0)) / scale + shift
        latents = torch.cat([encoded, noise.to(encoded)])
        decoded = vae.decode(latents[:, :, None] if is_of_frames else latents).sample
        decoded = (decoded[:, :, 0] if is_of_frames else decoded).float().cpu()
    count, channels, height, width = latents.shape
    small = torch.nn.functional.adaptive_avg_pool2d(decoded, (height, width))
    known = (latents.float().cpu() - shift) * scale
    inputs = known.permute(0, 2, 3, 1).reshape(-1, channels).numpy()
    inputs = np.concatenate([inputs, np.ones((count * height * width, 1))], axis=1)
    targets = (small.permute(0, 2, 3, 1).reshape(-1, 3).numpy() + 1) * 127.5
    if not (np.isfinite(inputs).all() and np.isfinite(targets).all()):
        logger.warning("The model's VAE gives no finite numbers for an image of patches: no previews.")
        return None
    solution = np.linalg.lstsq(inputs, targets, rcond=None)[0].astype(np.float32)
    return PreviewMap(solution[:-1], solution[-1], shares.float().cpu().numpy(), prediction_type)
