"""The VAE: pictures to latents an eighth of their size, and back."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from training import concepts
from training.art import STYLES, Art
from training.captions import BACKGROUNDS
from training.compose import Composer, Jitter, backgrounds, place
from training.config import Preset, Run
from training.loop import train

# noise on the latents while the decoder learns, as a share of their deviation: it learns to draw clean edges from
# latents that are a little off, which is what the UNet gives it
NOISE = 0.15


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


def crop(images: torch.Tensor, size: int, draw: torch.Generator) -> torch.Tensor:
    """A square of `size` out of each of the images (B, 3, H, W), at a place of its own."""
    tops, lefts = torch.randint(images.shape[-1] - size + 1, (2, len(images)), generator=draw).tolist()
    return torch.stack([image[:, y : y + size, x : x + size] for image, y, x in zip(images, tops, lefts, strict=True)])


def reconstruct(vae: AutoencoderKL, images: torch.Tensor, noise: float) -> torch.Tensor:
    """Images (B, 3, H, W) in -1 … 1 through the latents, with noise on them."""
    latents = vae.encode(images).latent_dist.mean
    deviation = latents.detach().float().std((0, 2, 3), keepdim=True)
    return vae.decode(latents + noise * deviation * torch.randn_like(latents)).sample


def loss_of(drawn: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels, of their differences to neighbours (edges), and at a quarter and an eighth of the size."""
    drawn, images = drawn.float(), images.float()
    total = F.l1_loss(drawn, images)
    for axis in (2, 3):
        total = total + F.l1_loss(drawn.diff(dim=axis), images.diff(dim=axis))
    for factor in (4, 8):
        total = total + 0.5 * F.l1_loss(F.avg_pool2d(drawn, factor), F.avg_pool2d(images, factor))
    return total


def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """dB over images (B, 3, H, W) in -1 … 1."""
    with torch.no_grad():
        return (10 * torch.log10(4 / F.mse_loss(vae.decode(vae.encode(images).latent_dist.mean).sample, images))).item()


def run(run: Run) -> AutoencoderKL:
    """Trains, then folds the latents' mean and deviation into the quant convolutions, so that both are 0 and 1."""
    preset, device = run.preset, run.device
    torch.manual_seed(run.seed)
    listed = concepts.load(run)
    chosen = Composer(
        Art.load(run.art, preset.art_size, list(STYLES), {concept.code for concept in listed}).to(device),
        listed, preset.image_size, Jitter((0.7, 1.0), 0.06), run.seed,
    )  # fmt: skip
    # all the other art as well, so that img2img and masking can read pictures that the UNet cannot draw
    wide = Art.load(run.art, preset.art_size, list(STYLES)).to(device)
    model = create(preset).to(device, memory_format=torch.channels_last)

    def images(step: int, rows: int, whole: bool) -> torch.Tensor:
        chosen.reseed(run.seed + step)
        own = chosen.batch(rows - rows // 3)[0]
        draw = torch.Generator().manual_seed(run.seed + step)
        picked = torch.randint(len(wide), (rows // 3,), generator=draw)
        names = [list(BACKGROUNDS)[i] for i in torch.randint(len(BACKGROUNDS), (rows // 3,), generator=draw)]
        size = preset.image_size, preset.image_size
        others = place(wide.pictures[picked], backgrounds(names, draw), size, Jitter((0.6, 1.4), 0.2, 0.3), draw)
        drawn = torch.cat([own, others])
        if not whole:
            drawn = crop(drawn, preset.vae_crop, draw)
        return drawn.to(device, memory_format=torch.channels_last)

    def loss(step: int, done: float) -> torch.Tensor:
        batch = images(step, preset.vae.batch, whole=done > 0.9)
        return loss_of(reconstruct(model, batch, NOISE), batch)

    train("VAE", model, loss, preset.vae, run.checkpoint("vae"), device)
    held_out = images(preset.vae.steps, 96, whole=True)
    normalise(model, held_out)
    print(f"VAE: {psnr(model, held_out):.1f} dB")
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
        quant.bias[4:] = 2 * torch.log(torch.tensor(NOISE / 3))
        post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
        post.weight *= deviation[None, :, None, None]
