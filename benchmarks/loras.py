"""`python -m benchmarks.loras`: a UNet's forward with no, one and three LoRAs, beside the stock pipeline's.

Then a step of four requests at once with unlike LoRAs, the time of a change of the set, and of the loading of a LoRA.
`--shape v1` is Stable Diffusion 1.5 in its true shape, with random weights; without it, the embedded model.
"""

import argparse
import copy
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from benchmarks.timing import in_turns, ratio, row, seconds
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward, merge
from handlers.pipelines.loras import SUFFIXES, Loras
from handlers.pipelines.named_files import NamedFiles
from handlers.request.lora_tags import take_tags
from tests.support.paths import CONFIGS, EMBEDDED

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]  # what kohya's scripts train
NAMES = "abc"
# of four requests at once, each with its LoRAs; requests with the same ones share a forward
BATCHES = {
    "four requests without": ("", "", "", ""),
    "four with the same LoRA": ("a", "a", "a", "a"),
    "two without, two with the same LoRA": ("", "", "a", "a"),
    "four unlike sets: none, one, another, three": ("", "a", "b", NAMES),
}


def make_unet(shape: str) -> Any:
    if shape == "embedded":
        return UNet2DConditionModel.from_pretrained(EMBEDDED / "unet")
    return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / shape / "unet")).eval()


def pipeline_of(unet: Any) -> Any:
    """One that has a UNet alone, since nothing else is called."""
    return StableDiffusionPipeline(
        unet=unet, vae=None, text_encoder=None, tokenizer=None, scheduler=DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def same_weights(unet: Any) -> Any:
    return copy.deepcopy(unet, {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())})


def save_loras(unet: Any, folder: Path, rank: int) -> None:
    unet = same_weights(unet)
    for name in NAMES:
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), adapter_name=name)
        state = get_peft_model_state_dict(unet, adapter_name=name)
        save_file({f"unet.{key}": value for key, value in state.items()}, folder / f"{name}.safetensors")


def stock_with(unet: Any, folder: Path, names: str) -> Any:
    pipeline = pipeline_of(same_weights(unet))
    for name in names:
        pipeline.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=name)
    pipeline.set_adapters([*names])
    return pipeline.unet


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=["embedded", "v1"], default="embedded")
    parser.add_argument("--latents", type=int, default=32, help="the side, in latent pixels")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as lent, torch.no_grad():
        unet = make_unet(options.shape)
        save_loras(unet, Path(folder), options.rank)
        loras = Loras(pipeline_of(unet), NamedFiles(Path(folder), SUFFIXES), 2**30)
        sample = torch.randn(2, unet.config.in_channels, options.latents, options.latents)
        states = {"encoder_hidden_states": torch.randn(2, 77, unet.config.cross_attention_dim)}

        def call(module: Any, names: str = "") -> DenoiserCall:
            chosen, _ = loras.choose(take_tags("".join(f"<lora:{name}:0.5>" for name in names))[1])
            return DenoiserCall(module, sample, 500, states, lent.enter_context(loras.lend(chosen)).adapters)

        loading = [seconds(lambda name=name: call(unet, name)) for name in NAMES]
        disabled = stock_with(unet, Path(folder), "a")
        disabled.disable_adapters()
        modules = {"": unet} | {names: stock_with(unet, Path(folder), names) for names in ("a", "b", NAMES)}
        stock = [call(modules[names]) for names in ("", "a", NAMES)]
        ours = [call(unet, names) for names in ("", "a", NAMES)]
        runs = [*stock, *ours, call(disabled)]
        times = in_turns(options.rounds, *[lambda one=one: forward(one) for one in runs])
        for index, count in enumerate((0, 1, 3)):
            row(
                f"{options.shape}, {count} LoRAs, a forward of two rows",
                f"{median(times[3 + index]):.3f} s, {ratio(times[3 + index], times[index]):.3f} × stock with as many, "
                f"{ratio(times[3 + index], times[0]):.3f} × stock without",
            )
        row("stock with a LoRA that is disabled", f"{ratio(times[6], times[0]):.3f} × stock without")
        batches = [
            [merge([call(unet, names)] * sets.count(names)) for names in dict.fromkeys(sets)]
            for sets in BATCHES.values()
        ]
        one_by_one = [[call(modules[names]) for names in sets] for sets in BATCHES.values()]
        works = [lambda calls=calls: [forward(one) for one in calls] for calls in (*batches, *one_by_one)]
        times = in_turns(options.rounds, *works)
        for name, together, apart in zip(BATCHES, times, times[len(BATCHES) :], strict=False):
            row(
                f"a step of {name}",
                f"{median(together):.3f} s, {ratio(together, apart):.3f} × stock one by one, "
                f"{ratio(together, times[0]):.3f} × without LoRAs",
            )
        first, second = (one.adapters for one in ours[1:])
        assert first is not None and second is not None
        changes = in_turns(20, first.module, second.module)
        row("a change of the set", f"{1000 * median(changes[0] + changes[1]):.2f} ms")
        row("loading, the first and the others", f"{loading[0]:.2f} s, {median(loading[1:]):.2f} s")


if __name__ == "__main__":
    main()
