"""Textual inversion, against stock diffusers with `load_textual_inversion`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from handlers.pipelines.arguments import pipeline_arguments
from handlers.pipelines.embeddings import Embeddings, Words, suffixes
from handlers.pipelines.loras import SUFFIXES, Loras
from handlers.pipelines.named_files import NamedFiles
from handlers.pipelines.noise import generator
from handlers.pipelines.prompt_cache import remember_prompts
from handlers.pipelines.prompts import Prompts
from tests.support import tiny_models
from tests.support.jobs import a_request, generated_together, load
from tests.support.networks import embedding, save_embedding, save_lora


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat-toy, red", ["a ", 1, ", red"]),
        ("Cat-Toy cat-toys xcat-toy", [1, " cat-toys xcat-toy"]),
        ("bad bad hands", [2, " ", 3]),
        ("a b", ["a b"]),
        ("<c+>", [4]),
        ("", []),
    ],
)
def test_names_are_found_as_whole_words(text: str, parts: list[Any]) -> None:
    assert [*Words({"cat-toy": 1, "bad": 2, "bad hands": 3, "<c+>": 4}).split(text)] == parts


class Served:
    def __init__(self, family: str, folder: Path, allow_pickle: bool = False) -> None:
        self.model, self.folder = folder / "model", folder / "embeddings"
        torch.manual_seed(0)
        pipeline = tiny_models.make(family)
        for part in (pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
            if part is not None:
                # otherwise the end of a text is its highest token, which is that of diffusers' enlarged vocabulary
                part.config.eos_token_id = pipeline.tokenizer.eos_token_id
        pipeline.save_pretrained(self.model)
        self.pipelines = load(self.model, "txt2img")
        remember_prompts(list(self.pipelines.values()))
        self.pipeline = self.pipelines["txt2img"]
        self.embeddings = Embeddings(self.pipeline, NamedFiles(self.folder, suffixes(allow_pickle)))

    def image(self, prompt: str, loras: Loras | None = None) -> Any:
        request = a_request("txt2img", prompt, 3, 4, 7.5)
        images, _ = generated_together(self.pipelines, [request], loras=loras, embeddings=self.embeddings)
        return np.asarray(images[0], int)

    def states(self, prompt: str) -> torch.Tensor:
        """(1, 77 for each chunk, width)"""
        arguments = {"prompt": prompt, "guidance_scale": 1.0}
        with torch.no_grad():
            made = Prompts(prompt, "", self.embeddings).arguments_for(self.pipeline, arguments)
        states: torch.Tensor = made["prompt_embeds"]
        return states

    def warnings(self, prompt: str) -> tuple[str, ...]:
        return Prompts(prompt, "", self.embeddings).warnings


def stock(served: Served, family: str, prompt: str, count: int, loras: Path | None = None) -> Any:
    pipeline = load(served.model, "txt2img")["txt2img"]
    pipeline.load_textual_inversion({"mine": embedding(count)}, token="mine")
    if family == "sdxl":
        pipeline.load_textual_inversion(
            {"mine": embedding(count, 101)}, token="mine",
            text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2,
        )  # fmt: skip
    if loras is not None:
        pipeline.load_lora_weights(str(loras.parent), weight_name=loras.name)
    request = a_request("txt2img", prompt, 3, 4, 7.5)
    arguments = pipeline_arguments(request, pipeline, request.crops[0]) | {"generator": generator(request.seed)}
    return np.asarray(pipeline(**arguments).images[0], int)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    served = Served("sd1", tmp_path_factory.mktemp("sd1"))
    save_embedding(served.folder / "mine.safetensors", count=3)
    return served


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_image_is_the_stock_pipelines_to_the_bit(family: str, count: int, tmp_path: Path) -> None:
    served = Served(family, tmp_path)
    save_embedding(served.folder / "mine.safetensors", family, count)
    image = served.image("a house of mine, red")
    assert np.array_equal(image, stock(served, family, "a house of mine, red", count))
    (tmp_path / "embeddings" / "mine.safetensors").unlink()
    plain = served.image("a house of mine, red")  # the file has gone, and nothing is left in the model
    assert not np.array_equal(image, plain)
    assert np.array_equal(plain, np.asarray(generated_together(
        load(served.model, "txt2img"), [a_request("txt2img", "a house of mine, red", 3, 4, 7.5)])[0][0]))  # fmt: skip


def test_with_a_lora_of_the_text_encoder(served: Served) -> None:
    file = save_lora(served.model.parent / "loras" / "a.safetensors")
    loras = Loras(served.pipeline, NamedFiles(file.parent, SUFFIXES), 2**30)
    image = served.image("a mine <lora:a>", loras)
    assert np.array_equal(image, stock(served, "sd1", "a mine ", 3, file))
    assert not np.array_equal(image, served.image("a mine"))


def test_weights_and_chunks_count_the_vectors(served: Served) -> None:
    ten = "apple " * 10
    plain, heavy = served.states(f"{ten} mine house"), served.states(f"{ten} (mine:1.5) house")
    ratio = heavy / plain
    own = slice(1 + 10, 1 + 10 + 3)
    assert torch.allclose(ratio[0, own] / ratio[0, 0, 0], torch.tensor(1.5), rtol=1e-3)
    # 73 words leave room for two of the three vectors, so a new chunk begins
    cut = served.states("apple " * 73 + "mine house")
    assert cut.shape[1] == 2 * 77
    assert torch.equal(cut[:, :77], served.states("apple " * 73 + "BREAK mine house")[:, :77])
    assert torch.equal(cut[:, 77:], served.states("mine house"))
    assert served.states("apple " * 72 + "mine").shape[1] == 77
    assert torch.equal(served.states("mine BREAK apple"), served.states("MINE BREAK apple"))


def test_an_encoding_is_remembered_by_its_vectors(served: Served) -> None:
    first, again = served.states("mine"), served.states("mine")
    assert torch.equal(first, again)
    save_embedding(served.folder / "other.safetensors", count=3, seed=5)
    assert not torch.equal(first, served.states("other"))  # of the same number of vectors
    assert not torch.equal(served.states("mine other"), served.states("other mine"))


def test_what_does_not_fit_is_a_warning_and_stays_text(tmp_path: Path) -> None:
    served = Served("sd1", tmp_path)
    save_embedding(served.folder / "xl.safetensors", "sdxl")
    save_embedding(served.folder / "long.safetensors", count=76)
    save_file({"emb_params": torch.zeros(2, 7)}, served.folder / "wide.safetensors")
    save_file({"a": torch.zeros(2, 7), "b": torch.zeros(2, 7)}, served.folder / "two.safetensors")
    (served.folder / "damaged.safetensors").write_bytes(b"rubbish")
    endless = load_file(save_embedding(served.folder / "endless.safetensors"))
    save_file({name: tensor * torch.inf for name, tensor in endless.items()}, served.folder / "endless.safetensors")
    for name, reason in {
        "xl": "it was made for another model.",
        "wide": "it was made for another model.",
        "long": "it has 76 vectors, and at most 75 fit between the marks of a prompt.",
        "two": "its file is damaged, or holds something else.",
        "endless": "its numbers are not finite.",
        "damaged": "its file is damaged, or holds something else.",
    }.items():
        assert served.warnings(f"a {name}.") == (
            f"The embedding {name} cannot be used, so its name is plain text: {reason}",
        )
    assert served.warnings("a house") == ()
    sdxl = Served("sdxl", tmp_path / "sdxl")
    save_embedding(sdxl.folder / "mine.safetensors", "sd1")
    assert "made for another model" in sdxl.warnings("mine")[0]


def test_pickled_files_only_where_they_are_allowed(tmp_path: Path) -> None:
    careful, careless = Served("sd1", tmp_path), Served("sd1", tmp_path, allow_pickle=True)
    careful.folder.mkdir()
    web_ui = {"string_to_token": {"*": 265}, "string_to_param": {"*": embedding(3)}, "name": "mine"}
    torch.save(web_ui, careful.folder / "mine.pt")
    torch.save({"<mine>": embedding(1)[0]}, careful.folder / "<other>.bin")
    assert careful.embeddings.files.all() == {} and [*careless.embeddings.files.all()] == ["<other>", "mine"]
    assert careful.image("mine").shape == (64, 64, 3) and careless.warnings("mine <other>") == ()
    assert np.array_equal(careless.image("a mine"), stock(careless, "sd1", "a mine", 3))
    assert careless.states("<other>").shape[1] == 77
