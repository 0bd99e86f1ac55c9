"""A client that does what the Photoshop plugin does, in JavaScript: with true status codes, and with 200 for all."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.running import HANG_S
from tests.support.samples import b64, decode, half_mask, sample_image

node = shutil.which("node")
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(node is None, reason="needs Node.js 18 or later")]

SIZE = 96, 64


@pytest.mark.parametrize(("server", "failures"), [("combined", [400, 400, 404]), ("always_200", [200, 200, 200])])
def test_the_plugins_requests(server: str, failures: list[int], request: pytest.FixtureRequest) -> None:
    init, mask = sample_image(*SIZE), half_mask(*SIZE)
    url = request.getfixturevalue(server).url
    command = [str(node), str(Path(__file__).with_name("plugin.mjs")), url, b64(init), b64(mask)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["ping"] == {"status": "success"} and said["custom_models"] == []
    assert said["txt2img"] == {"http": 200, "status": "success", "types": ["image/png"] * 2}
    assert said["seed"]["safe"] and said["seed"]["sent"] == said["seed"]["back"] and said["largest"]
    one, other = (decode({"base64": each}) for each in said["same"])
    assert np.abs(one - other).max() <= 2
    assert decode(said["img2img"]).shape == (SIZE[1], SIZE[0], 3)
    kept = np.asarray(mask) == 0
    assert np.array_equal(decode(said["masking"])[kept], np.asarray(init).astype(int)[kept])
    assert [failure["http"] for failure in said["failures"]] == failures
    for failure, start in zip(said["failures"], ("width must be", "init_image is not", "There is no"), strict=True):
        assert failure["status"] == "failure" and failure["message"].startswith(start)
