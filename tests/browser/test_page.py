"""The page in a real browser, in front of the real server."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import DESKTOP, KEY, PHONE, check, generate, pixels, settings, upload
from tests.support.paths import HOME
from tests.support.running import Running
from tests.support.samples import file_bytes, sample_image

pytestmark = pytest.mark.browser


def test_words_become_an_image_that_the_seed_brings_back(page: Page, server: Running) -> None:
    model = page.request.get(f"{server.url}/models", headers={"X-API-Key": KEY}).json()["models"][0]
    for name, value in model["defaults"].items():
        if name in ("num_inference_steps", "guidance_scale", "width", "height"):
            assert float(page.locator(f"#{name}").input_value()) == value
    assert page.locator("#num_outputs").get_attribute("max") == str(model["limits"]["max_num_outputs"])
    generate(page, "a red apple", num_inference_steps=4, num_outputs=2)
    expect(page.locator("#results button")).to_have_count(2)
    expect(page.locator("#nsfw")).to_be_hidden()
    first = pixels(page, "#image")
    page.locator("#result-seed").click()
    generate(page, "a red apple", num_inference_steps=4)
    # it was generated beside another one, now it is alone
    assert np.abs(pixels(page, "#image").astype(int) - first.astype(int)).max() <= 2


def test_progress_and_previews_arrive_and_cancel_stops_it(page: Page) -> None:
    page.locator("#prompt").fill("a panda")
    settings(page, num_inference_steps=250, seed=5)
    page.locator("#generate").click()
    expect(page.locator("#steps")).to_have_text(re.compile(r"Step \d+ of 250"))
    expect(page.locator("#preview-image")).to_be_visible()
    assert min(pixels(page, "#preview-image").shape[:2]) >= 8
    page.locator("#cancel").click()
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#earlier")).to_be_hidden()


def test_a_page_that_is_loaded_again_picks_its_job_up(page: Page) -> None:
    generate(page, "a house", num_inference_steps=2)
    page.locator("#prompt").fill("a panda")
    settings(page, num_inference_steps=100, seed=5)
    page.locator("#generate").click()
    expect(page.locator("#steps")).to_have_text(re.compile(r"Step \d+ of 100"))
    page.reload()
    expect(page.locator("#steps")).to_have_text(re.compile(r"Step \d+ of 100"))
    other = page.context.new_page()  # another tab picks it up, too, until the first one has it
    other.goto(page.url)
    expect(other.locator("#steps")).to_have_text(re.compile(r"Step \d+ of 100"))
    other.close()
    expect(page.locator("#caption")).to_have_text("a panda")
    expect(page.locator("#history button")).to_have_count(2)
    page.reload()
    expect(page.locator("#history button")).to_have_count(2)
    expect(page.locator("#progress")).to_be_hidden()


def test_jobs_of_another_tab_are_listed_and_cancelled(page: Page) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#prompt").fill("a panda")
    settings(other, num_inference_steps=250, num_outputs=4)
    other.locator("#generate").click()
    listed = page.locator("#jobs li")
    expect(listed).to_have_text(re.compile(r"a panda: Step \d+ of 250.*Cancel"))
    check(page)
    listed.locator("button").click()
    expect(page.locator("#others")).to_be_hidden()
    expect(other.locator("#progress")).to_be_hidden()
    expect(other.locator("#error")).to_be_hidden()
    # one that is finished after its tab was closed is found among the earlier images
    settings(other, num_inference_steps=40, num_outputs=1)
    other.locator("#generate").click()
    expect(listed).to_have_count(1)
    other.close()
    expect(page.locator("#others")).to_be_hidden()
    expect(page.locator("#history button")).to_have_count(1)


def test_a_job_that_the_server_has_lost(page: Page) -> None:
    lost = [{"id": "job_" + "0" * 32, "path": "txt2img", "fields": {"prompt": "x"}}]
    page.evaluate("lost => localStorage.setItem('sd-jobs', JSON.stringify(lost))", lost)
    page.reload()
    expect(page.locator("#error")).to_contain_text("a restart of the server drops all of them")
    expect(page.locator("#generate")).to_be_enabled()
    assert page.evaluate("localStorage.getItem('sd-jobs')") == "[]"


def test_what_is_painted_is_generated_anew_and_the_rest_stays(page: Page) -> None:
    page.locator("#tab-masking").click()
    init = sample_image(96, 64)
    upload(page, init)
    page.locator("#prompt").fill("a red apple")
    page.locator("#generate").click()
    expect(page.locator("#error")).to_contain_text("mask_image is missing")
    page.locator("#strength").fill("1")
    box = page.locator("#mask").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.6, steps=5)
    page.mouse.up()
    generate(page, "a red apple", num_inference_steps=5)
    changed = (pixels(page, "#image") != np.asarray(init).astype(int)).any(axis=2)
    assert changed[:, :40].any() and not changed[:, 48:].any()


def test_the_brush_by_keyboard(page: Page) -> None:
    page.locator("#tab-masking").click()
    upload(page, sample_image(64, 64))
    mask = page.locator("#mask")
    painted = "it => it.getContext('2d').getImageData(0, 0, it.width, it.height).data.filter((v, i) => i % 4 == 3 && v)"
    mask.focus()
    mask.press("Space")
    first = mask.evaluate(f"it => ({painted})(it).length")
    assert first
    for _ in range(4):
        mask.press("ArrowLeft")
    mask.press("Space")
    assert mask.evaluate(f"it => ({painted})(it).length") > first
    mask.press("Control+z")
    assert mask.evaluate(f"it => ({painted})(it).length") == first


def test_a_result_starts_the_next_image_and_earlier_ones_are_found_after_a_reload(page: Page) -> None:
    generate(page, "a red car", num_inference_steps=4, seed=11)
    before = pixels(page, "#image")
    page.locator("#image-button").click()
    expect(page.locator("#tab-img2img")).to_have_attribute("aria-selected", "true")
    assert np.array_equal(pixels(page, "#init"), before)
    generate(page, "a green car", num_inference_steps=5, strength="0.6")
    expect(page.locator("#history button")).to_have_count(2)
    page.reload()
    expect(page.locator("#history button")).to_have_count(2)
    page.locator("#history button").nth(1).click()
    expect(page.locator("#caption")).to_have_text("a red car")
    expect(page.locator("#result-seed")).to_have_text("11")
    assert np.array_equal(pixels(page, "#image"), before)
    page.locator("#again").click()
    assert page.locator("#prompt").input_value() == "a red car" and page.locator("#seed").input_value() == "11"
    page.locator("#forget").click()
    expect(page.locator("#earlier")).to_be_hidden()


def test_pasting_and_dropping_an_image(page: Page) -> None:
    for event, property in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """([event, property, data]) => {
                 const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
                 const transfer = new DataTransfer();
                 transfer.items.add(new File([bytes], "image.png", {type: "image/png"}));
                 const made = new Event(event, {bubbles: true, cancelable: true});
                 Object.defineProperty(made, property, {value: transfer});
                 document.body.dispatchEvent(made);
               }""",
            [event, property, base64.b64encode(file_bytes(sample_image(32, 48))).decode()],
        )
        expect(page.locator("#init")).to_be_visible()
        assert pixels(page, "#init").shape == (48, 32, 3)
        page.locator("#other").click()
        expect(page.locator("#drop")).to_be_visible()


def test_a_dropped_file_of_an_unknown_type_gets_a_sentence(page: Page) -> None:
    page.evaluate(
        """() => {
             const data = new DataTransfer();
             data.items.add(new File([new Uint8Array(64)], "layers.psd"));
             document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
           }"""
    )
    expect(page.locator("#error")).to_contain_text("save it as PNG, JPEG or WebP")


def test_a_bad_size_is_told_at_its_field(page: Page) -> None:
    page.locator("#prompt").fill("a red apple")
    settings(page, width=77)
    page.locator("#generate").click()
    expect(page.locator("#error")).to_have_text(
        "width must be a multiple of 8 from 64 to 1024, not 77: the nearest is 80."
    )
    expect(page.locator("#width")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#width")).to_be_focused()


def test_the_curl_line_sends_the_same_and_keeps_the_key_to_itself(page: Page, server: Running) -> None:
    page.locator("#prompt").fill("it's an apple")
    settings(page, seed=5)
    page.locator("#curl").click()
    line = page.locator("#curl-text").input_value()
    assert line.startswith(f"curl -s '{server.url}/txt2img' \\\n") and KEY not in line
    assert r"--form-string 'prompt=it'\''s an apple'" in line and "--form-string 'seed=5'" in line


def test_the_curl_line_has_the_seed_of_the_image_that_is_shown(page: Page) -> None:
    page.locator("#prompt").fill("a red apple")
    settings(page)
    page.locator("#curl").click()
    assert "seed=" not in page.locator("#curl-text").input_value()
    page.keyboard.press("Escape")
    generate(page, "a red apple")
    page.locator("#curl").click()
    seed = page.locator("#result-seed").inner_text()
    assert f"--form-string 'seed={seed}'" in page.locator("#curl-text").input_value()


def test_by_keyboard_alone(page: Page) -> None:
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("grinning face")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#caption")).to_have_text("grinning face")
    page.locator("#tab-txt2img").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-img2img")).to_be_focused()
    expect(page.locator("#source")).to_be_visible()


def test_the_page_asks_for_a_key_and_keeps_it(browser: Browser, server: Running) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator("#key-dialog")).to_be_visible()
    page.locator("#key").fill(KEY)
    page.locator("#key-save").click()
    expect(page.locator("#state")).to_contain_text("embedded")
    page.reload()
    expect(page.locator("#state")).to_contain_text("embedded")
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_and_nothing_sticks_out(page: Page, scheme: Any, size: tuple[int, int]) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": size[0], "height": size[1]})
    generate(page, "a house", num_inference_steps=2, num_outputs=2)
    for tab in ("txt2img", "masking"):
        page.locator(f"#tab-{tab}").click()
        if tab == "masking":
            upload(page, sample_image())
        check(page)
    page.goto(f"{page.url.rstrip('/')}/docs")
    paths = json.loads((HOME / "proxy" / "web" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    expect(page.locator("section")).to_have_count(sum(map(len, paths.values())))
    for tab in page.locator("[role=tab]").all():
        tab.click()
        expect(page.locator("[role=tabpanel]:not([hidden]) section").first).to_be_visible()
        check(page)
    page.reload()  # the address has the tab
    expect(page.locator("[role=tab]").last).to_have_attribute("aria-selected", "true")


def test_the_readmes_images_are_small() -> None:
    for name in ("page-light.png", "page-dark.png"):
        assert Path(HOME, "docs", name).stat().st_size < 200_000
