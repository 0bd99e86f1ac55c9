"""LoRAs by prompt, against stock diffusers with `load_lora_weights` and `set_adapters`."""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from handlers.engine.pipeline_job import PipelineJob
from handlers.errors import InvalidRequest
from handlers.pipelines.arguments import pipeline_arguments
from handlers.pipelines.loras import SUFFIXES, ChosenLora, Loras
from handlers.pipelines.named_files import NamedFiles
from handlers.pipelines.noise import generator
from handlers.pipelines.prompt_cache import remember_prompts
from handlers.pipelines.prompts import Prompts
from handlers.wire import TASKS
from tests.support import tiny_models
from tests.support.jobs import a_request, generated_together, load
from tests.support.networks import save_lora

LONG = " ".join(["apple"] * 90)


class Served:
    """The pipelines of a tiny model with the LoRAs of a folder, as a worker has them."""

    def __init__(self, model: Path, *tasks: str, max_bytes: int = 2**30, **options: Any) -> None:
        self.model = model
        self.folder = model.parent / "loras"
        self.pipelines = load(model, *tasks, **options)
        remember_prompts(list(self.pipelines.values()))
        first = next(iter(self.pipelines.values()))
        self.loras = Loras(first, NamedFiles(self.folder, SUFFIXES), max_bytes)

    def choose(self, prompt: str) -> list[ChosenLora]:
        chosen, warnings = self.loras.choose(Prompts(prompt, "").loras)
        assert not warnings
        return chosen

    def images(self, *prompts: str, task: str = "txt2img") -> list[Any]:
        """Of requests that run together."""
        requests = [a_request(task, prompt, 3, 4, 7.5) for prompt in prompts]
        images, self.merged_forwards = generated_together(self.pipelines, requests, loras=self.loras)
        return [np.asarray(image, int) for image in images]

    def image(self, prompt: str, task: str = "txt2img") -> Any:
        return self.images(prompt, task=task)[0]


def stock(served: Served, prompt: str, weights: Mapping[str, tuple[float, float]], task: str = "txt2img") -> Any:
    """What a pipeline of its own generates with these LoRAs, each with its weights for text encoders and UNet."""
    pipeline = load(served.model, task)[task]
    with warnings.catch_warnings(action="ignore"):  # peft warns of several
        for name in weights:
            pipeline.load_lora_weights(str(served.folder), weight_name=f"{name}.safetensors", adapter_name=name)
    parts = ("text_encoder", "text_encoder_2") if hasattr(pipeline, "text_encoder_2") else ("text_encoder",)
    scales = [{"unet": unet, **dict.fromkeys(parts, text)} for text, unet in weights.values()]
    pipeline.set_adapters(list(weights), scales)
    request = a_request(task, prompt, 3, 4, 7.5)
    arguments = pipeline_arguments(request, pipeline, request.crops[0]) | {"generator": generator(request.seed)}
    with torch.no_grad():
        arguments = Prompts(request.prompt, request.negative_prompt).arguments_for(pipeline, arguments)
    return np.asarray(pipeline(**arguments).images[0], int)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("sd1")
    for number, name in enumerate("abcd"):
        save_lora(folder / "loras" / f"{name}.safetensors", seed=number + 1)
    torch.manual_seed(0)
    model = tiny_models.make("sd1")
    model.text_encoder.final_layer_norm.bias.data.fill_(0.1)  # or the mean, which weights keep, would be 0
    model.save_pretrained(folder / "model")
    return Served(folder / "model")


SEVERAL = "<lora:a:0.8><lora:b:0.3:1><lora:c:unet=2>", {"a": (0.8, 0.8), "b": (0.3, 1), "c": (1, 2)}


@pytest.mark.parametrize(
    ("text", "tags", "weights"),
    [
        ("a red house", "<lora:a>", {"a": (1, 1)}),
        ("a red house", "<lora:a:0.5:1.5>", {"a": (0.5, 1.5)}),
        ("a red house", "<lora:b:te=-1:unet=0.25>", {"b": (-1, 0.25)}),
        ("a red house", *SEVERAL),
        (LONG, *SEVERAL),
        ("a (red:1.4) house", *SEVERAL),
    ],
)
def test_alone_the_image_is_the_stock_pipelines_to_the_bit(
    served: Served, text: str, tags: str, weights: dict[str, tuple[float, float]]
) -> None:
    image = served.image(text + tags)
    assert np.array_equal(image, stock(served, text, weights))
    assert not np.array_equal(image, served.image(text))


@pytest.mark.parametrize(("family", "layout"), [("sd1", "kohya"), ("sdxl", "diffusers"), ("sdxl", "kohya")])
@pytest.mark.parametrize("convolutions", [False, True])
def test_the_layouts_of_people_and_both_text_encoders(
    family: str, layout: str, convolutions: bool, tmp_path: Path
) -> None:
    save_lora(tmp_path / "loras" / "a.safetensors", family, layout=layout, convolutions=convolutions)
    served = Served(tiny_models.save(family, tmp_path / "model"), "txt2img")
    with served.loras.lend(served.choose("<lora:a>")) as lent:
        assert lent.adapters is not None
        assert len(lent.encoders) == (2 if family == "sdxl" else 1)
    image = served.image("a house <lora:a:0.7>")
    assert np.array_equal(image, stock(served, "a house", {"a": (0.7, 0.7)}))
    assert not np.array_equal(image, served.image("a house"))
    assert not np.array_equal(image, served.image("a house <lora:a:0:0.7>"))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_takes_them(served: Served, task: str) -> None:
    image = served.image("a house <lora:a:0.8>", task)
    assert np.array_equal(image, stock(served, "a house", {"a": (0.8, 0.8)}, task))


def test_unlike_sets_run_side_by_side(served: Served) -> None:
    sets = ["", "<lora:a:0.8>", "<lora:a:0.4>", "<lora:a:0.8><lora:b:0.5>"]
    prompts = [f"{text}{tags}" for text in ("a house", LONG) for tags in sets]
    alone = [served.image(prompt) for prompt in prompts]
    for image, expected in zip(served.images(*prompts), alone, strict=True):
        assert np.array_equal(image, expected)  # each has a forward of its own
    assert served.merged_forwards == 0
    # two of each set share theirs: of the five calls that four steps of PNDM are
    doubled = served.images(*[f"{text} {tags}" for tags in sets for text in ("a house", "a cat")])
    assert served.merged_forwards == 5 * len(sets) and len(doubled) == 8
    for index, expected in zip((0, 2, 4, 6), alone, strict=False):
        assert np.abs(doubled[index] - expected).max() <= 2


def test_without_a_lora_nothing_is_in_the_way(served: Served) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    served.image("a house <lora:a>")
    pipeline = served.pipelines["txt2img"]
    for module in (pipeline.unet, pipeline.text_encoder.module):
        assert not any(isinstance(layer, BaseTunerLayer) for layer in module.modules())
    twin = served.loras._twins["unet"].module
    own, others = dict(twin.named_parameters()), dict(pipeline.unet.named_parameters())
    assert own["conv_in.weight"] is others["conv_in.weight"]  # weights are there once
    plain = load(served.model, "txt2img")
    request = a_request("txt2img", "a house", 3, 4, 7.5)
    assert np.array_equal(served.image("a house"), generated_together(plain, [request])[0][0])


def test_a_part_that_no_lora_changes_stays_the_plain_one(served: Served) -> None:
    save_lora(served.folder / "text.safetensors", parts=("text_encoder",))
    for prompt, encoders in [("<lora:a:0:1>", 0), ("<lora:a:1:0>", 1), ("<lora:text>", 1), ("<lora:a:0>", 0)]:
        with served.loras.lend(served.choose(prompt)) as lent:
            assert len(lent.encoders) == encoders
            assert (lent.adapters is not None) == (prompt == "<lora:a:0:1>")
    assert np.array_equal(served.image("a house<lora:a:0>"), served.image("a house"))


def test_the_least_recently_used_goes_but_none_in_use(tmp_path: Path) -> None:
    files = [save_lora(tmp_path / "loras" / f"{name}.safetensors", seed=ord(name)) for name in "abc"]
    served = Served(tiny_models.save("sd1", tmp_path / "model"), "txt2img", max_bytes=2 * files[0].stat().st_size)
    alone = {name: served.image(f"a house<lora:{name}>") for name in "abc"}
    assert served.loras.loaded == ["b", "c"]
    served.image("<lora:b>")
    served.image("<lora:a>")
    assert served.loras.loaded == ["b", "a"]
    together = served.images(*[f"a house<lora:{name}>" for name in "abc"])  # three at once are more than the bound
    assert all(np.array_equal(image, alone[name]) for image, name in zip(together, "abc", strict=True))
    assert len(served.loras.loaded) == 2
    for twin in served.loras._twins.values():
        assert len(twin.module.peft_config) == 2


def test_a_job_that_is_cancelled_gives_its_loras_back(tmp_path: Path) -> None:
    save_lora(tmp_path / "loras" / "a.safetensors")
    served = Served(tiny_models.save("sd1", tmp_path / "model"), "txt2img", max_bytes=1)
    lend = partial(served.loras.lend, served.choose("<lora:a>"))
    arguments = {"prompt": "a house", "generator": generator(1)}
    jobs = [PipelineJob(served.pipelines["txt2img"], arguments, lend=lend) for _ in range(2)]
    for job in jobs:
        job.start()
    jobs[0].cancel()
    assert served.loras.loaded == ["a"]
    jobs[1].cancel()
    assert served.loras.loaded == []


def test_the_folder_may_change(tmp_path: Path) -> None:
    served = Served(tiny_models.save("sd1", tmp_path / "model"), "txt2img")
    assert served.loras.choose(Prompts("<lora:a>", "").loras) == (
        [], ["There is no LoRA a, so it has no effect; none is installed (GET /models)."]
    )  # fmt: skip
    save_lora(tmp_path / "loras" / "deeper" / "a.safetensors", seed=1)
    first = served.image("a house<lora:A>")
    save_lora(tmp_path / "loras" / "deeper" / "a.safetensors", seed=2, convolutions=True)
    assert not np.array_equal(first, served.image("a house<lora:a>"))
    assert served.loras.loaded == ["a"]  # the file as it was is gone
    save_lora(tmp_path / "loras" / "apples v1.0.safetensors")
    (warning,) = served.loras.choose(Prompts("<lora:aples v1>", "").loras)[1]
    assert warning.startswith("There is no LoRA aples v1, so it has no effect; the nearest name is apples v1.0 ")
    served.image("<lora:apples v1.0>")
    assert served.loras.loaded == ["a", "apples v1.0"]


def test_what_is_no_lora_for_the_model_is_a_sentence(tmp_path: Path) -> None:
    model = tiny_models.save("sd1", tmp_path / "model")
    folder = tmp_path / "loras"
    save_lora(folder / "xl.safetensors", "sdxl")
    save_lora(folder / "good.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"rubbish")
    (folder / "pickled.ckpt").write_bytes(b"rubbish")
    (folder / "model.safetensors").write_bytes((model / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    save_file({"lora_unet_a.hada_w1_a": torch.zeros(2, 2)}, folder / "loha.safetensors")
    foreign = {f"unet.nothing.to_q.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    save_file(foreign, folder / "foreign.safetensors")
    state = load_file(folder / "good.safetensors")
    save_file({name: torch.cat([value, value], -1) for name, value in state.items()}, folder / "wide.safetensors")
    served = Served(model, "txt2img")
    before = served.image("a house<lora:good>")
    for name, sentence in {
        "damaged": "The LoRA damaged is damaged",
        "model": "model is not a LoRA",
        "loha": "loha is a LoHa, which cannot be used here",
    }.items():
        with pytest.raises(InvalidRequest, match=sentence):
            served.choose(f"<lora:{name}>")
    for name in ("xl", "foreign", "wide"):
        with (
            pytest.raises(InvalidRequest, match=f"The LoRA {name} does not fit this model"),
            served.loras.lend(served.choose(f"<lora:good><lora:{name}>")),
        ):
            pass
    assert served.loras.loaded == ["good"] and "pickled" not in served.loras.files.all()
    assert np.array_equal(served.image("a house<lora:good>"), before)  # nothing of the others is left
    assert all(len(twin.module.peft_config) == 1 for twin in served.loras._twins.values())


def test_tags_of_other_places_and_kinds_are_warned_of() -> None:
    prompts = Prompts("a <hypernet:x:1>house", "dull <lora:a>")
    assert prompts.loras == () and len(prompts.warnings) == 2
    assert prompts.warnings[0].startswith("<hypernet:x:1> in prompt has no effect")
    assert prompts.warnings[1].endswith("it belongs into prompt.")
    given = {"prompt": "a <hypernet:x:1>house", "negative_prompt": "dull <lora:a>", "guidance_scale": 7.5}
    made = prompts.arguments_for(tiny_models.make("sd1"), given)
    assert (made["prompt"], made["negative_prompt"]) == ("a house", "dull ")
