"""Images enlarged in requests to a handler: by resampling, and by models from files."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.pipelines import upscalers
from handlers.pipelines.upscalers import MARGIN, TILE, Upscalers, count_tiles, tiles
from handlers.stable_diffusion import CombinedHandler
from tests.support.frontend import Context, Frontend
from tests.support.jobs import CPU
from tests.support.networks import save_esrgan
from tests.support.running import HANG_S
from tests.support.samples import b64, decode, sample_image

IMAGE = sample_image(TILE + 58, 90)
TWICE = (2 * (TILE + 58), 180)


class Doubles:
    """Stands in for spandrel's descriptor of a model: it doubles an image and remembers the tiles that it saw."""

    scale, device, dtype = 2, CPU, torch.float32

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.fault: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(image.shape))
        self.may_go_on.wait(HANG_S)
        if self.fault:
            raise self.fault
        return torch.nn.functional.interpolate(image, scale_factor=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upscalers")
    (folder / "2x_Mine.safetensors").write_bytes(b"a model")
    (folder / "2x_Pickled.pth").write_bytes(b"a model")
    return folder


@pytest.fixture(scope="module")
def handler(tiny_model: Path, folder: Path) -> CombinedHandler:
    handler = CombinedHandler()
    handler.initialize(Context(model=str(tiny_model), upscalers_dir=str(folder), max_image_pixels=200_000))
    return handler


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch, handler: CombinedHandler) -> Iterator[Doubles]:
    model = Doubles()
    monkeypatch.setattr(upscalers, "has_libraries", lambda: True)
    monkeypatch.setattr(Upscalers, "_read", lambda self, file: model)
    yield model
    handler.worker.shared.upscalers._last = None


def sent(frontend: Frontend, task: str = "upscale", **fields: Any) -> list[dict[str, Any]]:
    name = frontend.send(task, headers={"X-Progress": "1"}, **fields)
    frontend.run()
    return frontend.messages(name)


@pytest.mark.parametrize("upscaler", ["Lanczos", "Nearest"])
def test_pixels_are_enlarged_without_a_step(frontend: Frontend, upscaler: str) -> None:
    (answer,) = sent(frontend, init_image=b64(IMAGE), scale=2, upscaler=upscaler)
    (image,) = answer["result"]["images"]
    assert (image["width"], image["height"], image["seed"], image["nsfw"]) == (*TWICE, 0, False)
    assert np.array_equal(decode(image), IMAGE.resize(TWICE, Image.Resampling[upscaler.upper()]))


def test_a_models_tiles_meet_without_a_seam(frontend: Frontend, doubles: Doubles) -> None:
    *progress, answer = sent(frontend, init_image=b64(IMAGE), scale=2, upscaler="2x_mine")
    (image,) = answer["result"]["images"]
    assert np.array_equal(decode(image), IMAGE.resize(TWICE, Image.Resampling.NEAREST))
    assert doubles.seen == [(1, 3, 90, TILE + MARGIN), (1, 3, 90, 58 + MARGIN)]
    assert [line["progress"] for line in progress] == [{"step": 1, "of": 2}, {"step": 2, "of": 2}]


def test_its_result_comes_to_the_size_that_was_asked_for_and_keeps_transparency(
    frontend: Frontend, doubles: Doubles
) -> None:
    image = IMAGE.copy()
    image.putalpha(Image.linear_gradient("L").resize(IMAGE.size))
    (answer,) = sent(frontend, init_image=b64(image), width=300, height=108, upscaler="2x_Mine")[-1:]
    made = decode(answer["result"]["images"][0])
    assert made.shape == (108, 300, 4) and 0 <= made[0, :, 3].max() < made[-1, :, 3].min()


def test_a_fault_of_the_model_ends_its_request_alone(frontend: Frontend, doubles: Doubles) -> None:
    doubles.fault = RuntimeError("a fault")
    assert sent(frontend, init_image=b64(IMAGE), scale=2, upscaler="2x_Mine")[-1]["error"]["status"] == 500
    doubles.fault = None
    assert "result" in sent(frontend, init_image=b64(IMAGE), scale=2, upscaler="2x_Mine")[-1]


def test_what_it_makes_has_a_bound(frontend: Frontend, doubles: Doubles) -> None:
    fields = {"init_image": b64(sample_image(400, 200)), "width": 400, "height": 200, "upscaler": "2x_Mine"}
    error = sent(frontend, **fields)[-1]["error"]
    assert error["status"] == 400 and "enlarges 2 times, to 800 x 400 pixels; at most 200000" in error["message"]


def test_a_second_pass_begins_with_it(frontend: Frontend, doubles: Doubles) -> None:
    fields = {"num_inference_steps": 4, "hires_width": 192, "hires_height": 192, "hires_strength": 0.5, "seed": 3}
    *progress, answer = sent(frontend, "txt2img", **fields, hires_upscaler="2x_Mine")
    assert [line["progress"]["step"] for line in progress] == [*range(1, 4 + 1 + 2 + 1)]
    assert {line["progress"]["of"] for line in progress} == {7}
    assert doubles.seen == [(1, 3, 64, 64)] and answer["result"]["images"][0]["width"] == 192


def test_a_client_that_leaves_ends_the_tiles(frontend: Frontend, doubles: Doubles) -> None:
    doubles.may_go_on.clear()
    name = frontend.send("upscale", init_image=b64(IMAGE), scale=2, upscaler="2x_Mine")
    frontend.run_until(lambda: doubles.seen)
    (slot,) = frontend.handler.generations[name].slots
    frontend.leave(name)
    frontend.tick()
    doubles.may_go_on.set()
    frontend.run_until(lambda: slot.job.ended)
    assert len(doubles.seen) == 1


def test_names_are_listed_only_where_they_can_be_used(
    handler: CombinedHandler, frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upscalers, "has_libraries", lambda: True)
    assert handler.worker.describe(0)["models"][0]["upscalers"][-1] == "2x_Mine"  # no pickled one
    monkeypatch.setattr(upscalers, "has_libraries", lambda: False)
    assert "2x_Mine" not in handler.worker.describe(0)["models"][0]["upscalers"]
    error = sent(frontend, init_image=b64(IMAGE), scale=2, upscaler="2x_Mine")[-1]["error"]
    assert error["status"] == 400 and "its operator can install spandrel and torchvision" in error["message"]


def test_tiles_cover_an_image_once() -> None:
    for size in ((1, 1), (TILE, TILE), (TILE + 1, 3 * TILE - 1), (1000, 50)):
        covered = np.zeros(size[::-1], int)
        for seen, (left, top, right, bottom) in tiles(*size):
            covered[top:bottom, left:right] += 1
            assert seen[0] <= left and seen[1] <= top and seen[2] >= right and seen[3] >= bottom
            assert min(seen) >= 0 and seen[2] <= size[0] and seen[3] <= size[1]
        assert (covered == 1).all() and len([*tiles(*size)]) == count_tiles(size)


@pytest.mark.skipif(not upscalers.has_libraries(), reason="spandrel is not installed")
def test_esrgan_from_a_file(tiny_model: Path, tmp_path: Path) -> None:
    """On the newest Python, tests/package has the same for the whole server."""
    save_esrgan(tmp_path / "2x_Small.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no model")
    handler = CombinedHandler()
    handler.initialize(Context(model=str(tiny_model), upscalers_dir=str(tmp_path)))
    frontend = Frontend(handler)
    (image,) = sent(frontend, init_image=b64(IMAGE), scale=2, upscaler="2x_Small")[-1]["result"]["images"]
    assert 0 < np.abs(decode(image) - np.asarray(IMAGE.resize(TWICE, Image.Resampling.NEAREST), dtype=int)).mean() < 20
    error = sent(frontend, init_image=b64(IMAGE), scale=2, upscaler="damaged")[-1]["error"]
    assert "damaged is not an upscaler" in error["message"]
