"""The settings that files carry, on the page."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import ExifTags, Image, PngImagePlugin
from playwright.sync_api import Page, expect

from tests.support.browser import choose_file
from tests.support.samples import file_bytes, sample_image

pytestmark = pytest.mark.browser

PARAMETERS = (
    "a red apple, ({prompt}:1.2)\nsecond line\nNegative prompt: blurry,\nugly\n"
    'Steps: 31, Sampler: Euler a, Schedule type: Automatic, CFG scale: 6.5, Seed: 77, Size: 320x192, Model: "a, b", '
    "Denoising strength: 0.45, Mask blur: 4, Clip skip: 2"
)


def png(text: str, **options: Any) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", "none")
    chunks.add_text("parameters", text, **options)
    return file_bytes(sample_image(), pnginfo=chunks)


def with_exif(format: str, encoding: str = "utf-16-be") -> Callable[[str], bytes]:
    def made(text: str) -> bytes:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode(encoding)
        return file_bytes(sample_image(), format, exif=exif)

    return made


@pytest.mark.parametrize(
    ("made", "mime_type", "prompt"),
    [
        (png, "image/png", "größe"),
        (png, "image/png", "一 apple"),  # Pillow writes iTXt where Latin-1 does not suffice
        (with_exif("JPEG"), "image/jpeg", "一 apple"),
        (with_exif("JPEG", "utf-16-le"), "image/jpeg", "größe"),
        (with_exif("WEBP"), "image/webp", "一 apple"),
    ],
)
def test_the_settings_of_a_file_are_used_again(
    page: Page, made: Callable[[str], bytes], mime_type: str, prompt: str
) -> None:
    page.locator("#tab-img2img").click()
    choose_file(page, made(PARAMETERS.format(prompt=prompt)), mime_type)
    page.locator("#reuse-file").click()
    expect(page.locator("#note")).to_have_text("The file's settings are in the form.")
    wanted = {
        "prompt": f"a red apple, ({prompt}:1.2)\nsecond line", "negative_prompt": "blurry, ugly",
        "num_inference_steps": "31", "guidance_scale": "6.5", "seed": "77",
        "scheduler": "Euler a", "clip_skip": "1", "width": "320", "height": "192",
        "strength": "0.45", "mask_blur": "4",
    }  # fmt: skip
    assert {name: page.locator(f"#{name}").input_value() for name in wanted} == wanted


@pytest.mark.parametrize(
    "data",
    [
        file_bytes(sample_image()),
        file_bytes(sample_image(), "JPEG"),
        file_bytes(sample_image(), "WEBP"),
        file_bytes(sample_image(), "GIF"),
        png("")[:-20],
    ],
)
def test_a_file_without_settings_says_so(page: Page, data: bytes) -> None:
    page.locator("#tab-img2img").click()
    choose_file(page, data, "image/png")
    page.locator("#prompt").fill("stays")
    page.locator("#reuse-file").click()
    expect(page.locator("#note")).to_contain_text("This file has no settings in it")
    assert page.locator("#prompt").input_value() == "stays"


def test_parts_of_the_settings_and_an_unknown_scheduler(page: Page) -> None:
    page.locator("#tab-img2img").click()
    choose_file(page, png("Steps: of a stair, with a cat"), "image/png")
    page.locator("#reuse-file").click()
    expect(page.locator("#prompt")).to_have_value("Steps: of a stair, with a cat")
    page.locator("#other").click()
    expect(page.locator("#note")).to_be_empty()
    choose_file(page, png("a cat\nSteps: 9, Sampler: Restart, CFG scale: 7"), "image/png")
    page.locator("#reuse-file").click()
    expect(page.locator("#note")).to_contain_text("but not its scheduler Restart")
    assert page.locator("#num_inference_steps").input_value() == "9"


def test_a_size_that_is_too_large_to_generate_is_left_out(page: Page) -> None:
    page.locator("#tab-img2img").click()
    before = page.locator("#width").input_value()
    choose_file(page, png("a cat\nSteps: 9, Sampler: PLMS, CFG scale: 7, Size: 3000x64"), "image/png")
    page.locator("#reuse-file").click()
    expect(page.locator("#num_inference_steps")).to_have_value("9")
    assert page.locator("#width").input_value() == before and page.locator("#height").input_value() != "64"
