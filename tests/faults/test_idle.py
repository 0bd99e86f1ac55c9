"""A model that nobody uses leaves memory, and comes back with the next request."""

from pathlib import Path

import httpx
import pytest

from tests.support.running import running, wait_for

pytestmark = pytest.mark.faults


def test_weights_leave_memory_until_the_next_request(tiny_model: Path, tmp_path: Path) -> None:
    with running(tmp_path, "--model", str(tiny_model), "--idle-unload", "0.05") as instance:
        fields = {"num_inference_steps": 2, "seed": 3}
        (before,) = instance.images("txt2img", **fields)
        wait_for(lambda: not instance.workers())
        # those who ask how it is do not load it
        for path in ("ping", "readyz", "metrics", "models"):
            assert httpx.get(f"{instance.url}/{path}", timeout=60).status_code == 200
        (described,) = instance.models()
        assert not described["loaded"] and described["model"] == tiny_model.name
        assert not instance.workers()
        (after,) = instance.images("txt2img", **fields)
        assert after == before
        assert instance.process.poll() is None and "A worker cannot start" not in instance.output.read_text()
        wait_for(lambda: not instance.workers())
