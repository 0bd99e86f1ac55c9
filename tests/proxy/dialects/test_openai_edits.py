"""OpenAI's edits and variations: images, masks, and their sizes."""

from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from tests.support.dialects import DATA, FILE, result, talking

pytestmark = pytest.mark.anyio

EDITS, VARIATIONS = "/v1/images/edits", "/v1/images/variations"


def chunked(body: bytes) -> Callable[[], AsyncIterator[bytes]]:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    return parts


@pytest.mark.parametrize("with_length", [True, False])
async def test_an_edit_with_a_mask(with_length: bool) -> None:
    form = httpx.Request(
        "POST", "http://x", data={"prompt": "a hat", "n": "2", "strength": "0.5"},
        files=[("image[]", ("/tmp/a.png", FILE, "application/octet-stream")), ("image[]", ("upload", b"other")),
               ("mask", ("mask.png", FILE + b"mask"))],
    )  # fmt: skip
    content = form.read()
    async with talking(result(size=(99, 77))) as (http, served):
        answer = await http.post(
            "/images/edits",
            content=content if with_length else chunked(content)(),
            headers={"Content-Type": form.headers["content-type"]},
        )
    assert ("content-length" in answer.request.headers) is with_length
    assert served.asked == [("masking", {
        "prompt": "a hat", "num_outputs": "2", "init_image": FILE, "mask_image": FILE + b"mask",
        "mask_mode": "transparent", "strength": "0.5",
    })]  # fmt: skip
    assert answer.json()["size"] == "99x77"
    assert answer.json()["warnings"] == ["Only the first of the 2 images is edited; the others have no effect."]


async def test_an_edit_in_json() -> None:
    address = f"data:image/png;base64,{DATA}"
    async with talking() as (http, served):
        sent = {"prompt": "x", "images": [{"image_url": address}], "mask": {"image_url": address}, "size": "9x9"}
        answer = await http.post(EDITS, json=sent)
        assert served.native == {
            "prompt": "x", "init_image": address, "mask_image": address, "mask_mode": "transparent", "strength": "1",
        }  # fmt: skip
        assert answer.json()["warnings"] == ["size 9x9 was not applied: the answer has its image's size, 64x32."]
        for image, sentence in [
            ({"image_url": "HTTPS://example.com/a.png"}, "cannot be fetched from an address"),
            ({"file_id": "file-1"}, "cannot be a file_id"),
            (7, "must be an image"),
        ]:
            answer = await http.post(EDITS, json={"prompt": "x", "images": [image]})
            assert answer.status_code == 400 and sentence in answer.json()["error"]["message"]
        answer = await http.post(EDITS, json={"prompt": "x"})
        assert answer.json()["error"]["message"].startswith("image is missing")
        answer = await http.post(EDITS, json={"prompt": "x", "image": DATA, "mask": [DATA, DATA]})
        assert answer.json()["error"]["param"] == "mask"


async def test_native_warnings_in_the_clients_words() -> None:
    async with talking(result(warnings=("mask_image is larger than init_image.",))) as (http, _):
        answer = await http.post(EDITS, json={"prompt": "x", "image": DATA, "mask": DATA})
    assert answer.json()["warnings"] == ["mask is larger than image."]


async def test_an_edit_without_a_mask_and_a_variation() -> None:
    files = {"image": ("upload", FILE)}
    async with talking() as (http, served):
        await http.post(EDITS, data={"prompt": "x", "strength": "0.4"}, files=files)
        await http.post(EDITS, data={"prompt": "x", "model": "dall-e-2"}, files=files)
        await http.post(VARIATIONS, data={"n": "2"}, files=files)
        await http.post(EDITS, data={"prompt": "x"}, files=[*files.items(), ("mask_image", ("m", b"mask"))])
    assert served.asked == [
        ("img2img", {"prompt": "x", "init_image": FILE, "strength": "0.4"}),
        ("masking", {"prompt": "x", "init_image": FILE, "strength": "1"}),  # the image's own holes
        ("img2img", {"prompt": "", "init_image": FILE, "num_outputs": "2"}),
        ("masking", {"prompt": "x", "init_image": FILE, "mask_image": b"mask", "strength": "1"}),
    ]
