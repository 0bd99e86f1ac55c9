"""LoRAs and embeddings by request on a running server: files that come while it runs, several sets at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support.networks import save_embedding, save_lora
from tests.support.running import running
from tests.support.samples import decode

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_requests_with_unlike_sets_share_a_server(tiny_model: Path, tmp_path: Path, engine: str) -> None:
    folders = tmp_path / "loras", tmp_path / "embeddings"
    for folder in folders:
        folder.mkdir()
    options = ("--lora-dir", str(folders[0]), "--embeddings-dir", str(folders[1]), "--engine", engine)
    with running(tmp_path, "--model", str(tiny_model), *options) as instance:
        early = instance.post("txt2img", {"prompt": "a house <lora:late:0.8>", "num_inference_steps": "2"}).json()
        assert any("late" in warning for warning in early["warnings"])
        for seed, name in enumerate(("late", "other"), 1):
            save_lora(folders[0] / f"{name}.safetensors", seed=seed)
        save_embedding(folders[1] / "mine.safetensors")
        prompts = ["a house", "a house <lora:late:8>", "a house <lora:late:-8><lora:other:0:8>", "a (house mine:2)"] * 2
        long = [f"{prompt}, {'a roof, ' * 60}" if i >= 4 else prompt for i, prompt in enumerate(prompts)]

        def image(prompt: str) -> np.ndarray:
            (one,) = instance.images("txt2img", prompt=prompt, seed=3, num_inference_steps=4)
            return decode(one)

        alone = [image(prompt) for prompt in long]
        with ThreadPoolExecutor(len(long)) as pool:
            together = list(pool.map(image, long))
        for one, other in zip(alone, together, strict=True):
            assert np.abs(one - other).max() <= 3
        for i in range(4):
            for j in range(i):
                assert np.abs(alone[i] - alone[j]).max() > 3, (long[i], long[j])
        (model,) = instance.models()
        assert (model["loras"], model["embeddings"]) == (["late", "other"], ["mine"])
        broken = folders[0] / "broken.safetensors"
        broken.write_bytes(b"rubbish")
        refused = instance.post("txt2img", {"prompt": "x <lora:broken>"})
        assert refused.status_code == 400 and "broken" in refused.json()["message"]
        assert np.abs(image(long[0]) - alone[0]).max() <= 3
