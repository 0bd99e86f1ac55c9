"""What a worker loads, opens and describes, with small models."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from handlers.errors import InvalidRequest, ModelError
from handlers.wire import TASKS, UPSCALE, RequestHead
from handlers.worker import LIMITS, Worker
from tests.support import tiny_models
from tests.support.paths import HOME


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One with a model of its own for masking."""
    folders = {family: tiny_models.save(family, tmp_path_factory.mktemp(family)) for family in ("sd1", "inpainting")}
    settings = {
        "model": str(folders["sd1"]), "inpainting_model": str(folders["inpainting"]), "home": str(HOME),
        "device": "cpu", "engine": "torch", "max_num_outputs": 3,
    }  # fmt: skip
    worker = Worker.load(TASKS, settings, None, threads=1)
    yield worker
    worker.shared.pool.shutdown()


def test_each_model_is_described_with_its_tasks(worker: Worker) -> None:
    first, second = worker.describe(open_requests=2)["models"]
    assert (first["tasks"], second["tasks"]) == (["txt2img", "img2img"], ["masking"])
    assert first["model"] != second["model"]
    assert (first["device"], first["engine"], first["dtype"], first["threads"]) == ("cpu", "torch", "float32", 1)
    assert first["limits"].keys() == set(LIMITS) and first["limits"]["max_num_outputs"] == 3
    # 50 steps of two rows, and the decoding
    assert first["seconds_per_image"] == pytest.approx(
        100 * worker.measured.seconds_per_row + worker.measured.image_seconds, rel=0.06
    )
    assert first["defaults"]["width"] == 64 and not first["safety_checker"]
    assert first["activity"]["open_requests"] == 2 and first["activity"]["max_batch_rows"] >= 2


def test_the_first_images_are_not_counted(worker: Worker) -> None:
    (activity, _) = (model["activity"] for model in worker.describe(0)["models"])
    assert activity["unet_forwards"] == 0 and not any(activity["stage_seconds"].values())


@pytest.mark.parametrize(
    ("engine", "dtype", "computed"),
    [("auto", "auto", "bfloat16"), ("auto", "float32", "float32"), ("torch", "auto", "float32")],
)
def test_torch_computes_in_bfloat16_where_the_cpu_has_it_unless_somebody_asks_for_torch(
    engine: str, dtype: str, computed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.worker.pays", lambda: False)  # no OpenVINO
    monkeypatch.setattr("handlers.hardware.device.has_bfloat16", lambda: True)
    model = str(tiny_models.save("sd1", tmp_path))
    worker = Worker.load(
        ["txt2img"], {"model": model, "device": "cpu", "engine": engine, "dtype": dtype}, None, threads=1
    )
    worker.shared.pool.shutdown()
    unet = worker.served["txt2img"].pipeline.unet
    assert (worker.engine, worker.dtype, str(unet.dtype)) == ("torch", computed, f"torch.{computed}")
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) is (computed == "bfloat16")


@pytest.mark.parametrize("task", TASKS)
def test_a_request_is_opened_for_its_task(worker: Worker, task: str) -> None:
    assert worker.open({"body": b""}, RequestHead(task)).ending is None


def test_every_archive_can_upscale(worker: Worker) -> None:
    assert worker.open({"body": b""}, RequestHead(UPSCALE)).ending is None


@pytest.mark.parametrize("task", ["", "enlarge"])
def test_a_task_that_is_not_served_is_refused_with_those_that_are(worker: Worker, task: str) -> None:
    with pytest.raises(InvalidRequest, match="serves txt2img, img2img, masking: say which in the header X-Task"):
        worker.open({"body": b""}, RequestHead(task))


def test_settings_that_contradict_each_other_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match=r"does not compute in float16 here: use --dtype auto, or --engine torch"):
        Worker.load(TASKS, {"engine": "openvino", "device": "cpu", "dtype": "float16"}, None, 1)
    with pytest.raises(ModelError, match=r"There is no engine 'steam': use auto, torch, openvino\."):
        Worker.load(TASKS, {"engine": "steam"}, None, 1)
    with pytest.raises(ModelError, match=r"handler\.colour is not a known key"):
        Worker.load(TASKS, {"colour": "red"}, None, 1)
