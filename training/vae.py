"""The VAE: images to latents an eighth of their size, and back."""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from training import concepts, loop
from training.art import STYLES, Art
from training.captions import BACKGROUNDS
from training.compose import Jitter, backgrounds, place
from training.config import Preset, Run
from training.loop import train

# the most noise on the latents while the VAE learns, as a share of their deviation: it learns to draw clean edges from
# latents that are a little off, which is what the UNet gives it
NOISE = 0.3
POSTERIOR = 0.05  # the deviation that img2img samples latents with
# how strongly the discriminator pulls at the decoder, as a share of the pull of the pixels' L1
ADVERSARIAL = 0.4


def create(preset: Preset) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(preset.vae_widths),
        up_block_types=("UpDecoderBlock2D",) * len(preset.vae_widths),
        block_out_channels=preset.vae_widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=preset.image_size,
        scaling_factor=1.0,
    )


def reconstruct(vae: AutoencoderKL, images: torch.Tensor, noise: float) -> torch.Tensor:
    """Images (B, 3, H, W) in -1 … 1 through the latents, with up to `noise` on them."""
    latents = vae.encode(images).latent_dist.mean
    deviation = latents.detach().float().std((0, 2, 3), keepdim=True)
    return vae.decode(degraded(latents, deviation, noise)).sample


def degraded(latents: torch.Tensor, deviation: torch.Tensor | float, noise: float) -> torch.Tensor:
    """Latents with noise on them, of each image between none and `noise` of the deviation."""
    strength = noise * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    return latents + strength * deviation * torch.randn_like(latents)


def loss_of(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels, of their differences to neighbours and next neighbours (edges), and at a quarter and an eighth
    of the size.
    """
    decoded, images = decoded.float(), images.float()
    total = F.l1_loss(decoded, images)
    for axis in (2, 3):
        for apart in (1, 2):
            size = decoded.shape[axis] - apart
            step, right = (x.narrow(axis, apart, size) - x.narrow(axis, 0, size) for x in (decoded, images))
            total = total + F.l1_loss(step, right) / apart
    for factor in (4, 8):
        total = total + 0.5 * F.l1_loss(F.avg_pool2d(decoded, factor), F.avg_pool2d(images, factor))
    return total


class Discriminator(nn.Module):
    """Tells decoded patches from real ones; its features serve as a perceptual measure."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        channels = 3
        for width in widths:
            norm = nn.GroupNorm(8, width) if channels > 3 else nn.Identity()
            self.layers.append(nn.Sequential(nn.Conv2d(channels, width, 4, 2, 1), norm, nn.LeakyReLU(0.2)))
            channels = width
        self.layers.append(nn.Conv2d(channels, 1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The features of each layer; the last are the patches' scores."""
        found = [images]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return found[1:]


def adversarial(
    discriminator: Discriminator, decoded: torch.Tensor, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The discriminator's loss (hinge), and the decoder's: the scores and the distance of the features.

    The decoder's gradient is scaled to ADVERSARIAL times that of an L1 of the pixels, whatever the
    discriminator's scale.
    """
    decoded, images = decoded.float(), images.float()
    false, true = discriminator(decoded.detach()), discriminator(images)
    own = F.relu(1 + false[-1]).mean() + F.relu(1 - true[-1]).mean()
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    seen = decoded.detach().requires_grad_()
    felt: list[torch.Tensor] = torch.func.functional_call(discriminator, frozen, (seen,))
    distance = sum(F.l1_loss(a, b.detach()) for a, b in zip(felt[:-1], true[:-1], strict=True))
    (pull,) = torch.autograd.grad(4 * distance - felt[-1].mean(), seen)
    pull = pull * (ADVERSARIAL / (pull.abs().mean() * pull.numel() + 1e-12))
    return own, (decoded * pull.detach()).sum()


def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """dB over images (B, 3, H, W) in -1 … 1."""
    with torch.no_grad():
        return (10 * torch.log10(4 / F.mse_loss(vae.decode(vae.encode(images).latent_dist.mean).sample, images))).item()


@functools.lru_cache(maxsize=1)
def _all_art(folder: Path, size: int, device: str) -> Art:
    """All the art, so that img2img and masking can read images that the UNet cannot draw."""
    return Art.load(folder, size, list(STYLES)).to(device)


class Images:
    """What the VAE learns from: art on plain backgrounds, as crops or whole."""

    def __init__(self, run: Run) -> None:
        self._preset, self._seed = run.preset, run.seed
        chosen = {concept.code for concept in concepts.load(run)}
        self._art = _all_art(run.art, run.preset.art_size, run.device)
        listed = [i for i, (code, _) in enumerate(self._art.labels) if code in chosen]
        self._groups = torch.tensor(listed), torch.arange(len(self._art))

    def batch(self, step: int, rows: int, whole: bool) -> torch.Tensor:
        """(rows, 3, size, size), two thirds of them of what the UNet learns. Crops have the size of detail that whole
        images have, a third of them up to 1.4 times that: for small faces and thin parts.
        """
        draw = torch.Generator().manual_seed(self._seed + step)
        side = self._preset.image_size if whole else self._preset.vae_crop
        times = self._preset.image_size / side
        jitters = [Jitter((0.7, 1.0), 0.06), Jitter((0.6, 1.4), 0.2, 0.3)]
        if not whole:
            jitters = [Jitter((0.7 * times, times), 0.36), Jitter((0.6 * times, 1.4 * times), 0.36, 0.3)]
        parts = []
        for group, jitter, part in zip(self._groups, jitters, (rows - rows // 3, rows // 3), strict=True):
            picked = group[torch.randint(len(group), (part,), generator=draw)].to(self._art.images.device)
            names = [list(BACKGROUNDS)[i] for i in torch.randint(len(BACKGROUNDS), (part,), generator=draw)]
            drawings = self._art.images[picked]
            parts.append(place(drawings, backgrounds(names, draw), (side, side), jitter, draw))
        return torch.cat(parts).contiguous(memory_format=loop.LAYOUT)


def run(run: Run) -> AutoencoderKL:
    """Trains, then folds the latents' mean and deviation into the quant convolutions, so that both are 0 and 1."""
    preset, device = run.preset, run.device
    torch.manual_seed(run.seed)
    images = Images(run)
    model = create(preset).to(device, memory_format=loop.LAYOUT)
    # as many pixels, whatever the size
    rows = max(6, round(preset.vae.batch * (preset.vae_crop / preset.image_size) ** 2))

    def prepare(step: int, done: float) -> tuple[bool, tuple[torch.Tensor]]:
        whole = done > 0.9
        return whole, (images.batch(step, rows if whole else preset.vae.batch, whole),)

    def loss(whole: bool, batch: torch.Tensor) -> torch.Tensor:
        return loss_of(reconstruct(model, batch, NOISE), batch)

    train("VAE", model, loss, preset.vae, run.checkpoint("vae"), device, preset.average, prepare)
    held_out = images.batch(preset.vae.steps, 96, whole=True)
    normalise(model, held_out)
    print(f"VAE: {psnr(model, held_out):.1f} dB", flush=True)
    return model


def run_decoder(run: Run, model: AutoencoderKL) -> AutoencoderKL:
    """Trains the decoder alone, against a discriminator. The latents stay the same, so the UNet is not affected."""
    preset, device = run.preset, run.device
    torch.manual_seed(run.seed)
    images = Images(run)
    model.to(device, memory_format=loop.LAYOUT)
    discriminator = Discriminator().to(device, memory_format=loop.LAYOUT)
    trained = nn.ModuleList([model.decoder, model.post_quant_conv, discriminator])
    rows = max(6, round(preset.decoder.batch * (preset.vae_crop / preset.image_size) ** 2))

    def prepare(step: int, done: float) -> tuple[bool, tuple[torch.Tensor]]:
        whole = step % 3 == 2
        return whole, (images.batch(10**7 + step, rows if whole else preset.decoder.batch, whole),)

    def loss(whole: bool, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            latents = model.encode(batch).latent_dist.mean
        decoded = model.decode(degraded(latents, 1.0, NOISE)).sample
        own, pull = adversarial(discriminator, decoded, batch)
        return loss_of(decoded, batch) + own + pull - pull.detach()

    train("decoder", trained, loss, preset.decoder, run.checkpoint("decoder"), device, preset.average, prepare)
    model.eval()
    print(f"VAE: {psnr(model, images.batch(preset.vae.steps, 96, whole=True)):.1f} dB", flush=True)
    return model


def normalise(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Rescales `quant_conv` and `post_quant_conv` so that latents have mean 0 and deviation 1, which is exact."""
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean.float()
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        quant, post = vae.quant_conv, vae.post_quant_conv
        assert isinstance(quant, nn.Conv2d) and isinstance(post, nn.Conv2d)
        quant.weight[:4] /= deviation[:, None, None, None]
        quant.bias[:4] = (quant.bias[:4] - mean) / deviation
        # the posterior's deviation is a constant: little noise for what img2img samples from it
        quant.weight[4:] = 0
        quant.bias[4:] = 2 * torch.log(torch.tensor(POSTERIOR))
        post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
        post.weight *= deviation[None, :, None, None]
