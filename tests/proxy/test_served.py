"""What dialects know of the models: asked for once in a while."""

from pathlib import Path

import httpx
import pytest

from handlers.catalogue import Catalogue
from proxy.custom_models import CustomModels
from proxy.loading import Loading
from proxy.served import FRESH_S, Served
from proxy.upstream import Upstream
from tests.support.dialects import Described

pytestmark = pytest.mark.anyio


async def test_an_archive_is_described_again_after_a_while(tmp_path: Path) -> None:
    asked: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.port == 8080:
            asked.append(request.url.path)
        return Described()(request)

    now = 0.0
    archives = dict.fromkeys(("txt2img", "img2img", "masking"), "all")
    upstream = Upstream("http://x:8080", "http://x:8081", "http://x:8082", archives, httpx.MockTransport(respond))
    catalogue = Catalogue(tmp_path / "catalogue")
    custom = CustomModels(tmp_path / "config.json", catalogue)
    served = Served(Loading(upstream, catalogue), upstream, custom, lambda: now)
    for _ in range(2):
        assert await served.models() == ["tiny"] and served.others() == []
        assert await served.defaults("all", "masking") == {"num_inference_steps": 20}
    assert len(asked) == 1
    now = FRESH_S + 1
    await served.models()
    assert len(asked) == 2
    await upstream.aclose()
