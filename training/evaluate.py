"""What the finished model can do, in numbers that can fail: `python -m training evaluate`.

Prints a table and writes it into the model card; the exit status is 1 if a bar is missed.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
)
from PIL import Image, ImageDraw

from training import concepts, judge, safety
from training.art import JUDGE_STYLES, STYLES, Art
from training.captions import BACKGROUNDS
from training.compose import GENTLE, STRONG, Composer, backgrounds, place
from training.concepts import Concept
from training.config import Run
from training.generate import (
    AT_ONCE,
    GUIDANCE,
    HELD_OUT_SEEDS,
    SHEET,
    STEPS,
    for_checker,
    generate,
    sheet,
    to_image,
    to_tensor,
)

COMPARED = 256  # pixels at which sharpness is compared, whatever the model's size
STRONGEST = 0.02  # share of an image's pixels whose gradients count as its edges


@dataclass(frozen=True)
class Finding:
    """A line of the table. `bar`: what `value` has to reach; None where the figure only informs."""

    what: str
    value: float
    shown: str
    bar: float | None = None

    @property
    def ok(self) -> bool:
        return self.bar is None or self.value >= self.bar

    @property
    def line(self) -> str:
        bar = "" if self.bar is None else f"≥ {self.bar:g}{'' if self.ok else ' **missed**'}"
        return f"| {self.what} | {self.shown} | {bar} |"


def sharpness(images: torch.Tensor) -> float:
    """The mean gradient, in brightness per pixel, at the strongest edges of images (B, 3, H, W) in -1 … 1."""
    grey = (images / 2 + 0.5).clamp(0, 1).mean(1)
    across, down = (grey.diff(dim=axis) for axis in (2, 1))
    gradient = (across[:, :-1] ** 2 + down[:, :, :-1] ** 2).sqrt().flatten(1)
    return gradient.topk(max(1, round(STRONGEST * gradient.shape[1])), dim=1).values.mean().item()


def background_of(image: torch.Tensor) -> str:
    """The named background nearest to the mean colour of the corners of (3, H, W) in -1 … 1."""
    edge = max(2, image.shape[-1] // 16)
    corners = torch.cat([image[:, y, x].flatten(1) for y in (slice(edge), slice(-edge, None))
                         for x in (slice(edge), slice(-edge, None))], 1)  # fmt: skip
    colour = (corners.median(1).values + 1) * 127.5
    return min(BACKGROUNDS, key=lambda name: (torch.tensor(BACKGROUNDS[name]) - colour).square().sum().item())


class Bench:
    """The model under test with its judge and the real images to compare with."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run = run
        self.pipeline = AutoPipelineForText2Image.from_pretrained(folder, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.size = 8 * self.pipeline.unet.config.sample_size
        self.listed: list[Concept] = concepts.load(run)
        self.judge = judge.run(run)
        self.right = torch.arange(len(self.listed))
        styles, grounds = list(STYLES), list(BACKGROUNDS)
        self.grounds = [grounds[i % len(grounds)] for i in range(len(self.listed))]
        self.prompts = [
            f"{concept.names[0]} on a {ground} background, {styles[i % len(styles)]}"
            for i, (concept, ground) in enumerate(zip(self.listed, self.grounds, strict=True))
        ]

    def top(self, images: torch.Tensor, right: torch.Tensor, k: int) -> float:
        return (judge.ranks(self.judge, images, right, self.listed) < k).float().mean().item()

    def generated(self, name: str, seed: int = 1, every: int = 1, **arguments: object) -> torch.Tensor:
        """An image of every so many of the prompts."""
        seeds = range(seed, seed + len(self.prompts))
        return to_tensor(generate(self.pipeline, self.prompts[::every], seeds[::every], name, **arguments))

    def adherence(self) -> list[Finding]:
        art = Art.load(self.run.art, self.run.preset.art_size, list(STYLES), {c.code for c in self.listed})
        real, _, right = Composer(art, self.listed, self.size, GENTLE, 5).batch(len(art), chosen=torch.arange(len(art)))
        # the judge's own accuracy: on the generator's art, which it has never seen
        real1, real5 = self.top(real, right, 1), self.top(real, right, 5)
        found = [
            Finding(f"judge on {len(real)} real images of {len(self.listed)} concepts, top-1", real1, f"{real1:.2f}"),
            Finding("judge on real images, top-5", real5, f"{real5:.2f}", 0.7),
        ]
        for steps in (10, 20, 50):
            every = 1 if steps == STEPS else 3  # a third of the prompts is enough for what only informs
            images = self.generated(f"{steps} steps", every=every, num_inference_steps=steps)
            rates = [self.top(images, self.right[::every], k) for k in (1, 5)]
            shown = f"{rates[0]:.2f}, {rates[1]:.2f}"
            name = f"generated, {steps} steps, {len(images)} prompts: top-1, top-5"
            found.append(Finding(name, rates[1], shown))
            if steps == STEPS:
                share = rates[1] / real5
                found.append(Finding("top-5, generated ÷ real", share, f"{share:.2f}", 0.75))
                hit = [background_of(image) == ground for image, ground in zip(images, self.grounds, strict=True)]
                rate = sum(hit) / len(hit)
                found.append(Finding("background of the colour asked for", rate, f"{rate:.2f}", 0.8))
                self.images = images
        unguided = self.top(self.generated("guidance 1", guidance_scale=1.0), self.right, 1)
        gain = self.top(self.images, self.right, 1) - unguided
        found.append(Finding(f"guidance {GUIDANCE:g} against 1: gain in top-1", gain, f"{gain:+.2f}", 0.0))
        return found

    def edges(self) -> list[Finding]:
        """Generated images against the art of the same concepts in the same styles on the same backgrounds."""
        art = Art.load(self.run.art, self.run.preset.art_size, list(STYLES), {c.code for c in self.listed})
        styles = list(STYLES)
        wanted = [(concept.code, styles[i % len(styles)]) for i, concept in enumerate(self.listed)]
        both = [i for i, label in enumerate(wanted) if label in art.labels]
        drawings = art.images[[art.labels.index(wanted[i]) for i in both]]
        draw_from = torch.Generator().manual_seed(5)
        colours = backgrounds([self.grounds[i] for i in both], draw_from)
        real = place(drawings, colours, (COMPARED, COMPARED), GENTLE, draw_from)
        side = COMPARED, COMPARED
        shown = to_tensor([to_image(self.images[i]).resize(side, Image.Resampling.LANCZOS) for i in both])
        share = sharpness(shown) / sharpness(real)
        return [Finding(f"edge sharpness at {COMPARED} px, generated ÷ real", share, f"{share:.2f}", 0.8)]

    def decoder(self) -> list[Finding]:
        """Drawings by other artists through the VAE, which has seen none of them; and the art that it learnt from."""
        found = []
        for name, styles, bar in (("the art it learnt from", STYLES, None), ("held-out art", JUDGE_STYLES, 30.0)):
            chosen = {concept.code for concept in self.listed}
            art = Art.load(self.run.art, self.run.preset.art_size, list(styles), chosen)
            draw_from = torch.Generator().manual_seed(6)
            names = [list(BACKGROUNDS)[i % len(BACKGROUNDS)] for i in range(len(art))]
            colours = backgrounds(names, draw_from)
            images = place(art.images, colours, (self.size, self.size), GENTLE, draw_from)
            error = []
            for part in images.split(AT_ONCE):
                with torch.no_grad():
                    again = self.pipeline.vae.decode(self.pipeline.vae.encode(part).latent_dist.mean).sample
                error.append((again.clamp(-1, 1) - part).square().mean((1, 2, 3)))
            value = (10 * torch.log10(4 / torch.cat(error).mean())).item()
            found.append(Finding(f"VAE on {len(art)} images of {name}: PSNR", value, f"{value:.1f} dB", bar))
        return found

    def variety(self) -> list[Finding]:
        """How far images of one prompt differ over seeds, as a share of how far those of different prompts do."""
        prompts = [name for name in SHEET[:8] for _ in range(4)]
        images = to_tensor(generate(self.pipeline, prompts, range(100, 100 + len(prompts)), "variety")).flatten(1)
        apart = torch.cdist(images, images, p=1) / images.shape[1]
        same = torch.tensor([[a == b for b in prompts] for a in prompts])
        share = (apart[same & (apart > 0)].mean() / apart[~same].mean()).item()
        return [Finding("difference over seeds ÷ over prompts", share, f"{share:.2f}", 0.15)]

    def img2img(self) -> list[Finding]:
        """Turns one thing into another: a low strength keeps what is where, a high one follows the prompt."""
        pipeline = AutoPipelineForImage2Image.from_pipe(self.pipeline)
        shift = 7
        prompts = self.prompts[shift:] + self.prompts[:shift]
        inits = [to_image(image) for image in self.images]
        kept, followed, apart = {}, {}, {}
        for strength in (0.3, 0.9):
            images = to_tensor(
                generate(pipeline, prompts, range(len(prompts)), f"strength {strength}", image=inits, strength=strength)
            )
            kept[strength] = self.top(images, self.right, 5)
            followed[strength] = self.top(images, self.right.roll(-shift), 5)
            # how much nearer an image is to its own init image than to the others
            distances = torch.cdist(images.flatten(1), self.images.flatten(1), p=1)
            apart[strength] = 1 - (distances.diagonal().mean() / distances.mean()).item()
        gain = apart[0.3] - apart[0.9]
        return [
            Finding("img2img: nearer to the init image at strength 0.3 than at 0.9", gain, f"{gain:+.2f}", 0.1),
            Finding("img2img, strength 0.3: what was there, top-5", kept[0.3], f"{kept[0.3]:.2f}"),
            Finding("img2img, strength 0.9: what was asked for, top-5", followed[0.9], f"{followed[0.9]:.2f}", 0.4),
        ]

    def masking(self) -> list[Finding]:
        """Fills a disc in the middle of a plain image with what is asked for."""
        pipeline = AutoPipelineForInpainting.from_pipe(self.pipeline)
        draw_from = torch.Generator().manual_seed(0)
        plain = backgrounds(self.grounds, draw_from)[:, :, None, None].expand(-1, -1, self.size, self.size) * 2 - 1
        mask = Image.new("L", (self.size, self.size))
        ImageDraw.Draw(mask).ellipse([0.04 * self.size] * 2 + [0.96 * self.size] * 2, fill=255)
        images = generate(
            pipeline, self.prompts, range(len(self.prompts)), "masking", image=[to_image(image) for image in plain],
            mask_image=[mask] * len(plain), strength=1.0, width=self.size, height=self.size,
        )  # fmt: skip
        rate = self.top(to_tensor(images), self.right, 5)
        return [Finding("masking, an empty disc filled: top-5", rate, f"{rate:.2f}", 0.5)]

    def safety(self) -> list[Finding]:
        """On generated images of other seeds, and on drawings by other artists: the checker saw none of them."""
        generated, flagged = for_checker(self.pipeline, self.run, HELD_OUT_SEEDS, 48)
        art = Art.load(self.run.art, self.run.preset.art_size, list(JUDGE_STYLES))
        code = next(concept.code for concept in self.listed if concept.flagged)
        own = [i for i, (name, _) in enumerate(art.labels) if name == code]
        chosen = torch.tensor(own * 50 + list(range(len(art))))
        grounds = [list(BACKGROUNDS)[i % len(BACKGROUNDS)] for i in range(len(chosen))]
        draw_from = torch.Generator().manual_seed(9)
        real = []
        for i in range(0, len(chosen), 128):
            colours = backgrounds(grounds[i : i + 128], draw_from)
            drawings = art.images[chosen[i : i + 128]]
            real.append(place(drawings, colours, (self.size, self.size), STRONG, draw_from))
        truth = torch.tensor([int(i) in own for i in chosen])
        found = []
        for name, images, right in (("generated", generated, flagged), ("real", torch.cat(real), truth)):
            said = torch.tensor([flag for i in range(0, len(images), 64) for flag in self._flags(images[i : i + 64])])
            recall = (said & right).sum().item() / right.sum().item()
            precision = (said & right).sum().item() / max(1, said.sum().item())
            counts = f"of {int(right.sum())} to flag and {int((~right).sum())} others"
            found += [
                Finding(f"safety checker, {name}: recall {counts}", recall, f"{recall:.3f}", 0.9),
                Finding(f"safety checker, {name}: precision", precision, f"{precision:.3f}", 0.9),
            ]
        return found

    def _flags(self, images: torch.Tensor) -> list[bool]:
        return safety.flags(self.pipeline.safety_checker, images)

    def seconds(self) -> list[Finding]:
        begin = time.perf_counter()
        generate(self.pipeline, SHEET[:1], [1], "one image")
        took = time.perf_counter() - begin
        return [Finding("one image, seconds (the figure that counts is below 5)", 5 - took, f"{took:.1f} s", 0.0)]


def run(run: Run, folder: Path) -> int:
    """Evaluates the model in `folder`; writes its contact sheet and the table in its card. Returns an exit status."""
    torch.manual_seed(run.seed)
    bench = Bench(run, folder)
    sheet(bench.pipeline).save(folder / "contact-sheet.png", optimize=True)
    findings: list[Finding] = []
    for part in ("decoder", "adherence", "edges", "variety", "img2img", "masking", "safety", "seconds"):
        found: list[Finding] = getattr(bench, part)()
        print(*(finding.line for finding in found), sep="\n", flush=True)
        findings += found
    table = "\n".join(["| what | measured | bar |", "|---|---|---|", *(finding.line for finding in findings)])
    print(table)
    card = folder / "README.md"
    if card.is_file():
        before, begin, rest = card.read_text(encoding="utf-8").partition("<!-- evaluation -->\n")
        _, end, after = rest.partition("<!-- end of evaluation -->")
        if begin and end:
            card.write_text(before + begin + table + "\n" + end + after, encoding="utf-8")
    return 0 if all(finding.ok for finding in findings) else 1
