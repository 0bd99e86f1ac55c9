"""What the page's tests do in the browser."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.support.samples import file_bytes

DESKTOP, PHONE = (1280, 900), (390, 844)
KEY = "a-key"


def settings(page: Page, **fields: Any) -> None:
    page.locator("#settings").evaluate("it => it.open = true")
    for name, value in fields.items():
        page.locator(f"#{name}").fill(str(value))


def generate(page: Page, prompt: str, **fields: Any) -> None:
    """Generates, and waits until it is done."""
    page.locator("#prompt").fill(prompt)
    settings(page, **fields)
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator("#caption")).to_have_text(prompt)
    expect(page.locator("#progress")).to_be_hidden()


def pixels(page: Page, selector: str) -> np.ndarray:
    """An image of the page, as (height, width, 3) whole numbers."""
    data = page.locator(selector).evaluate(
        """image => {
             const canvas = document.createElement("canvas");
             [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
             canvas.getContext("2d").drawImage(image, 0, 0);
             return canvas.toDataURL("image/png").split(",")[1];
           }"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def choose_file(page: Page, data: bytes, mime_type: str) -> None:
    page.locator("#file").set_input_files({"name": "image", "mimeType": mime_type, "buffer": data})
    expect(page.locator("#init")).to_be_visible()


def upload(page: Page, image: Image.Image) -> None:
    choose_file(page, file_bytes(image), "image/png")


def check(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def change_models(page: Page, change: Callable[[dict[str, Any]], object]) -> None:
    """Has GET /models say something else, which the page then shows."""

    def answer(route: Route) -> None:
        response = route.fetch()
        told: dict[str, Any] = response.json()
        change(told)
        route.fulfill(response=response, body=json.dumps(told))

    page.route("**/models", answer)
    page.reload()


def offer(page: Page, **states: str) -> None:
    """Has GET /models offer these models beside the main one."""
    entry = {"reason": "Why.", "weight_bytes": 0, "loaded": False}
    offered = [{**entry, "name": name, "label": name, "archive": f"custom-{name}", "state": state}
               for name, state in states.items()]  # fmt: skip
    change_models(page, lambda told: told.update(available=offered))
