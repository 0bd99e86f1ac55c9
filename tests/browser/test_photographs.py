"""Large photographs, masks and answers on the page. What the page would send is caught in the browser."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from playwright.sync_api import Page, expect

from tests.support.browser import DESKTOP, PHONE, check, choose_file, offer, upload
from tests.support.samples import b64, file_bytes, sample_image

pytestmark = pytest.mark.browser

# stands for the server: keeps the form in `sent` and its address in `sentTo`; its job ends once `go` is called
CATCH = """ended => {
  const real = window.fetch;
  const answer = value => new Response(JSON.stringify(value));
  let status = {status: "queued", queue_position: 3, step: 0, steps: 0, images: []};
  window.go = () => { status = ended };
  window.fetch = async (path, options = {}) => {
    if (options.body instanceof FormData) {
      [window.sent, window.sentTo] = [options.body, path];
      return answer({id: "job_played", ...status});
    }
    if (!path.startsWith("v1/jobs/job_played")) return real(path, options);
    if (path.includes("/images/")) {
      const bytes = Uint8Array.from(atob(ended.images[0].data), character => character.charCodeAt(0));
      return new Response(bytes, {headers: {"Content-Type": "image/png"}});
    }
    await new Promise(resolve => setTimeout(resolve, 50));
    return answer({id: "job_played", ...status});
  };
}"""
BYTES = """async name => {
  const bytes = new Uint8Array(await window.sent.get(name).arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}"""


def catch(page: Page, **ended: Any) -> None:
    image = {"url": "/v1/jobs/job_played/images/0", "seed": 5, "nsfw": False, "data": b64(sample_image())}
    page.evaluate(CATCH, {"status": "completed", "images": [image], **ended})


def send(page: Page) -> dict[str, str]:
    """Presses Generate; the texts that are sent."""
    page.locator("#generate").click()
    expect(page.locator("#progress")).to_be_visible()
    expect(page.locator("#steps")).to_have_text("Queued, place 3 …")
    page.evaluate("go()")
    expect(page.locator("#progress")).to_be_hidden()
    texts: dict[str, str] = page.evaluate("Object.fromEntries([...sent].filter(([, it]) => typeof it === 'string'))")
    return texts


def sent_mask(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(page.evaluate(BYTES, "mask_image")))).convert("L"))


def click_at(page: Page, x: float, y: float) -> None:
    """Clicks at a part of the visible part of the image."""
    page.locator("#easel").scroll_into_view_if_needed()
    box = page.locator("#easel").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)


def white_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is above grey, as shares of the mask's size."""
    ys, xs = np.nonzero(mask > 127)
    height, width = mask.shape
    return xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height


def test_a_photograph_of_24_million_pixels_is_sent_as_it_is_with_a_fine_mask(page: Page) -> None:
    page.locator("#tab-masking").click()
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    photograph = file_bytes(sample_image(600, 400).resize((6000, 4000)), "JPEG", quality=80, exif=exif)
    choose_file(page, photograph, "image/jpeg")
    catch(page)
    page.locator("#brush").fill("1")
    for _ in range(6):
        page.locator("#zoom-in").click()  # 1.5 ** 6 = 11 times, around the middle
    click_at(page, 0.5, 0.5)
    send(page)
    assert base64.b64decode(page.evaluate(BYTES, "init_image")) == photograph
    mask = sent_mask(page)
    height, width = mask.shape
    assert 15_900_000 < width * height <= 16_000_000 and abs(width / height - 1.5) < 0.001
    left, top, right, bottom = white_box(mask)
    # the brush is 30 pixels of the photograph without zoom
    assert 1 / 6000 < right - left < 4 / 6000 and 1 / 4000 < bottom - top < 4 / 4000
    assert abs(left - 0.5) < 0.002 and abs(top - 0.5) < 0.002


def test_the_mask_of_a_turned_photograph_is_upright(page: Page) -> None:
    page.locator("#tab-masking").click()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    choose_file(page, file_bytes(sample_image(90, 60), "JPEG", exif=exif), "image/jpeg")
    catch(page)
    click_at(page, 0.9, 0.1)
    send(page)
    mask = sent_mask(page)
    assert mask.shape == (90, 60) and mask[9, 54] == 255 and mask[81, 6] == 0


def test_strokes_are_undone_cleared_and_erased_and_moving_paints_nothing(page: Page) -> None:
    page.locator("#tab-masking").click()
    upload(page, sample_image(300, 200))
    catch(page)
    click_at(page, 0.25, 0.5)
    click_at(page, 0.75, 0.5)
    page.locator("#undo").click()
    page.locator("#clear").click()
    send(page)
    assert "mask_image" not in page.evaluate("[...sent.keys()]")  # the server takes the image's holes
    page.locator("#undo").click()
    page.locator("#erase").click()
    page.locator("#brush").fill("5")
    click_at(page, 0.25, 0.5)
    page.locator("#zoom-in").click()
    page.locator("#move").click()
    box = page.locator("#easel").bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    left = page.locator("#easel").evaluate("it => it.scrollLeft")
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 20, middle[1])
    page.mouse.up()
    assert page.locator("#easel").evaluate("it => it.scrollLeft") == pytest.approx(left + 20, abs=1)
    catch(page)
    send(page)
    mask = sent_mask(page)
    assert mask.shape == (200, 300)
    assert mask[100, 75] == 0 and mask[100, 60] == 255  # erased in the middle of the first
    assert not mask[:, 150:].any()


def test_ctrl_and_the_wheel_zoom_at_the_pointer(page: Page) -> None:
    page.locator("#tab-masking").click()
    upload(page, sample_image(300, 200))
    box = page.locator("#easel").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.95, box["y"] + box["height"] * 0.95)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    easel = page.locator("#easel")
    expect(page.locator("#sheet")).to_have_attribute("style", "width: 225%;")
    # what was at 95 % of the image is still at 95 % of the easel
    seen = easel.evaluate("it => (it.scrollLeft + 0.95 * it.clientWidth) / it.scrollWidth")
    assert seen == pytest.approx(0.95, abs=0.01)
    page.locator("#tab-img2img").click()
    expect(page.locator("#sheet")).to_have_attribute("style", "width: 100%;")


def test_the_masks_fields_and_the_files(page: Page) -> None:
    page.locator("#prompt").fill("x")
    catch(page)
    texts = send(page)
    assert texts["output_format"] == "png" and "output_quality" not in texts
    assert not [name for name in texts if name.startswith("mask_")]
    page.locator("#tab-masking").click()
    upload(page, sample_image(300, 200))
    click_at(page, 0.5, 0.5)
    catch(page)
    texts = send(page)
    assert {name: texts.get(name) for name in ("mask_blur", "mask_grow", "mask_padding", "mask_fill")} == {
        "mask_blur": "0", "mask_grow": "0", "mask_padding": None, "mask_fill": "original",
    }  # fmt: skip
    for details in ("#mask-settings", "#settings"):
        page.locator(details).evaluate("it => it.open = true")
    page.get_by_label("Feather", exact=True).fill("4")
    page.get_by_label("Grow, as a slider").fill("7")
    page.get_by_label("Context").fill("-1")
    page.get_by_label("Fill").select_option("Noise")
    page.get_by_label("File format").select_option("WebP")
    page.get_by_label("Quality").fill("70")
    catch(page)
    texts = send(page)
    assert (texts["mask_blur"], texts["mask_grow"], texts["mask_padding"]) == ("4", "7", "-1")
    assert (texts["mask_fill"], texts["output_format"], texts["output_quality"]) == ("noise", "webp", "70")


def test_warnings_are_shown_beside_their_image(page: Page) -> None:
    page.locator("#prompt").fill("x")
    catch(page, warnings=["The LoRA <b>nope</b> does not exist.", "The mask is black."])
    send(page)
    shown = page.get_by_label("Warnings").locator("li")
    assert shown.all_inner_texts() == ["The LoRA <b>nope</b> does not exist.", "The mask is black."]
    check(page)
    catch(page)
    send(page)
    expect(shown).to_have_count(0)
    page.locator("#history button").nth(1).click()
    expect(shown).to_have_count(2)


def test_a_custom_model_serves_each_tab(page: Page) -> None:
    expect(page.locator("#model-field")).to_be_hidden()  # there is one model
    offer(page, mine="ready", slow="preparing", odd="failed")
    options = page.locator("#model option")
    expect(options).to_have_text(["embedded", "mine", "slow (being prepared)", "odd (cannot be served)"])
    expect(options.nth(3)).to_be_disabled()
    check(page)
    for tab, path in (("txt2img", "custom/mine"), ("img2img", "custom/mine/img2img")):
        page.locator(f"#tab-{tab}").click()
        page.locator("#model").select_option("mine")
        if tab == "img2img":
            upload(page, sample_image())
        catch(page)
        send(page)
        assert page.evaluate("sentTo") == path
    page.locator("#tab-masking").click()
    page.locator("#again").click()
    expect(page.locator("#tab-img2img")).to_have_attribute("aria-selected", "true")
    assert page.locator("#model").input_value() == "mine"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_in_the_masks_fields(page: Page, scheme: Any, size: tuple[int, int]) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.locator("#tab-masking").click()
    upload(page, sample_image(300, 200))
    for details in ("#mask-settings", "#settings"):
        page.locator(details).evaluate("it => it.open = true")
    page.locator("#zoom-in").click()
    page.locator("#reuse-file").click()
    expect(page.locator("#note")).not_to_be_empty()
    check(page)
