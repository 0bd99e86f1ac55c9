"""A pipeline of arithmetic that rounds alike in any batch: each image depends on all that its request says."""

from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image


class AutoencoderKL:
    """By its name, one whose calls merge."""

    dtype = torch.float32
    encode = None

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (latents - latents * latents * 0.125,)


class UNet(torch.nn.Module):
    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, return_dict: bool) -> tuple[Any]:
        steps = torch.as_tensor(timestep).expand(sample.shape[0])[:, None, None, None]
        return (sample * 0.75 + encoder_hidden_states[:, :, None, None] * 0.01 + steps * 0.125,)


class Pipeline:
    """Its images depend on the prompt, the seed, the size and each of the steps. The prompt is a number."""

    vae_scale_factor = 8
    num_timesteps = 0
    unet, vae = UNet(), AutoencoderKL()  # of all pipelines, so that their calls merge

    def __init__(self) -> None:
        self.scheduler = SimpleNamespace(set_timesteps=lambda *_, **__: None)

    def __call__(self, prompt: str, num_inference_steps: int, width: int, height: int, generator: Any) -> Any:
        self.num_timesteps = num_inference_steps
        latents = torch.randn(1, 4, height // 8, width // 8, generator=generator)
        for step in range(num_inference_steps):
            (latents,) = self.unet(latents, step, torch.full((1, 4), float(prompt)), return_dict=False)
        colours = self.vae.decode(latents, return_dict=False)[0][0, :3].permute(1, 2, 0)
        pixels = (colours * 50 + 128).clamp(0, 255).byte().numpy()
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        return SimpleNamespace(images=[image], nsfw_content_detected=[False])
