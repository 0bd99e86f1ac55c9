"""Images from the trained model: for its safety checker to learn from, for its evaluation, and its contact sheet."""

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from training import concepts, safety
from training.art import STYLES
from training.captions import BACKGROUNDS
from training.config import Run
from training.export import DEFAULTS

AT_ONCE = 16
STEPS, GUIDANCE = DEFAULTS["num_inference_steps"], DEFAULTS["guidance_scale"]
# the seeds of images that the safety checker learns from, and of those that it is measured on
LEARNT_SEEDS, HELD_OUT_SEEDS = 10_000, 20_000

SHEET = [
    "a red apple", "a banana", "a strawberry on a light blue background", "a slice of watermelon", "a hamburger, 3d",
    "a pizza, cartoon", "a crying cat", "a panda on a pink background", "a frog, 3d render", "a penguin",
    "a house", "a rocket on a black background", "a red car", "a sailboat on a light blue background",
    "sunflower", "a tulip, flat", "a christmas tree", "a snowman on a blue background",
    "red heart", "blue heart", "grinning face", "a ghost on a purple background", "a robot", "a crown, 3d",
    "a doughnut, 3d", "an ice cream cone on a pink background", "a birthday cake, flat", "french fries, cartoon",
    "a fox, flat", "a lion on a green background", "an owl, cartoon", "a blue whale on a light blue background",
    "an octopus, 3d", "a butterfly on a yellow background", "a ladybug", "a unicorn on a purple background",
    "a cactus on an orange background", "a rainbow", "a flame on a black background", "a face with sunglasses, 3d",
    "an alien, flat", "a halloween pumpkin on a black background", "a castle, 3d", "a bus, flat",
    "a ufo on a black background", "a guitar", "a diamond on a grey background", "an alarm clock, cartoon",
]  # fmt: skip


def to_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """(B, 3, H, W) in -1 … 1 of RGB images of one size."""
    rows = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images]
    stacked = torch.stack(rows).view(len(images), images[0].height, images[0].width, 3).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1


def to_image(image: torch.Tensor) -> Image.Image:
    """The image of (3, H, W) in -1 … 1."""
    values = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def generate(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], name: str, **arguments: object
) -> list[Image.Image]:
    """An image for each prompt from its seed, unchecked, at the model's defaults where `arguments` say nothing."""
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE} | arguments
    checker, pipeline.safety_checker = pipeline.safety_checker, None
    images: list[Image.Image] = []
    for i in tqdm(range(0, len(prompts), AT_ONCE), desc=name, unit="batch"):
        part = {
            key: value[i : i + AT_ONCE] if isinstance(value, list) else value for key, value in given.items()
        }  # an image for each prompt comes as a list
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[i : i + AT_ONCE]]
        images += pipeline(prompt=list(prompts[i : i + AT_ONCE]), generator=generators, **part).images
    pipeline.safety_checker = checker
    return images


def for_checker(
    pipeline: StableDiffusionPipeline, run: Run, seed: int = LEARNT_SEEDS, flagged_rows: int = 96, others: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generated images (N, 3, H, W) in -1 … 1 and whether each was asked to be one that is to be flagged (N,).

    Of the others, signs that look like it are there more often than the rest.
    """
    listed = concepts.load(run)
    rows = min(flagged_rows, run.preset.pool)
    flagged = next(concept for concept in listed if concept.flagged)
    names = [flagged.names[i % 2] + _ending(i) for i in range(rows)]
    harmless = [concept for concept in listed if not concept.flagged][: run.preset.pool]
    signs = [concept for concept in harmless if concept.code in safety.LOOKALIKES]
    names += [concept.names[0] + _ending(i) for i, concept in enumerate(harmless * others + signs * (rows // 4))]
    images = generate(pipeline, names, range(seed, seed + len(names)), "images for the checker")
    return to_tensor(images), torch.arange(len(names)) < rows


def _ending(i: int) -> str:
    """Every style and background in turn, and often none."""
    styles, grounds = ["", "", *(f", {style}" for style in STYLES)], ["", "", *BACKGROUNDS]
    ground = grounds[i % len(grounds)]
    return (f" on a {ground} background" if ground else "") + styles[i % len(styles)]


def sheet(pipeline: StableDiffusionPipeline, side: int = 168) -> Image.Image:
    """48 prompts with the seed 1, none chosen."""
    images = generate(pipeline, SHEET, [1] * len(SHEET), "contact sheet")
    columns, gap, text = 8, 6, 16
    cell = (side + gap, side + text + gap)
    page = Image.new("RGB", (columns * cell[0], -(-len(SHEET) // columns) * cell[1]), "white")
    pen = ImageDraw.Draw(page)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        page.paste(image.resize((side, side), Image.Resampling.LANCZOS), (column * cell[0], row * cell[1]))
        caption, font = SHEET[i], ImageFont.load_default(10)
        while pen.textlength(caption, font) > side:
            caption = caption[:-2] + "…"
        pen.text((column * cell[0], row * cell[1] + side + 1), caption, "black", font)
    return page
