"""LoRAs and embeddings under the prompt."""

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import change_models, check

pytestmark = pytest.mark.browser


def with_names(page: Page, **names: list[str]) -> None:
    """Has GET /models list these names."""
    change_models(page, lambda told: [model.update(names) for model in told["models"]])


def test_a_click_puts_a_name_where_the_cursor_is(page: Page) -> None:
    with_names(page, loras=["water <b>colour</b>", "ink"], embeddings=["mine"])
    page.locator("#networks summary").click()
    buttons = page.locator("#network-names button")
    expect(buttons).to_have_text(["water <b>colour</b>", "ink", "mine"])
    check(page)
    page.locator("#prompt").fill("a house")
    buttons.nth(1).click()
    buttons.nth(2).click()
    expect(page.locator("#prompt")).to_have_value("a house <lora:ink:1> mine")
    expect(page.locator("#prompt")).to_be_focused()


def test_without_any_there_is_no_list(page: Page) -> None:
    with_names(page, loras=[], embeddings=[])
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#networks")).to_be_hidden()
