"""The models to choose from, and what the page says of the prompt."""

import pytest
from playwright.sync_api import Page, expect

from tests.support.browser import DESKTOP, PHONE, check, offer

pytestmark = pytest.mark.browser


def test_the_tokens_of_the_prompt_are_counted(page: Page) -> None:
    tokens = page.locator("#tokens")
    expect(tokens).to_be_empty()
    page.locator("#prompt").fill("a red apple")
    expect(tokens).to_have_text("3 of 75 tokens")
    page.locator("#prompt").fill("apple " * 80 + "BREAK a house")
    expect(tokens).to_contain_text("in 3 chunks: 75 + ")
    check(page)
    # a model that is not in memory has no tokenizer there: nothing is said, and it is not loaded for this
    offer(page, mine="ready")
    page.locator("#prompt").fill("a red apple")
    page.route("**/tokens", lambda route: route.fulfill(status=503, json={"message": "Not in memory."}))
    with page.expect_request("**/tokens") as asked:
        page.locator("#model").select_option("mine")
    assert asked.value.post_data == "prompt=a+red+apple&model=mine"
    expect(tokens).to_be_empty()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_syntax_is_explained(page: Page, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    offer(page, mine="ready")
    page.locator("#syntax summary").click()
    expect(page.locator("#syntax")).to_contain_text("(word:1.3)")
    expect(page.locator("#model-field")).to_be_visible()
    check(page)


def test_the_page_says_that_a_model_is_loaded(page: Page) -> None:
    job = {"id": "job_0", "status": "queued", "queue_position": 1, "loads": "mine"}
    failed = {"id": "job_0", "status": "failed", "error": {"message": "It is too large."}}
    told = iter([job, failed])
    page.route("**/txt2img", lambda route: route.fulfill(status=202, json=job))
    page.route("**/v1/jobs/*", lambda route: route.fulfill(json=next(told)))
    page.evaluate(
        """() => {
             window.said = [];
             new MutationObserver(() => said.push(document.getElementById("steps").textContent))
               .observe(document.getElementById("steps"), {childList: true});
           }"""
    )
    page.locator("#prompt").fill("x")
    page.locator("#generate").click()
    expect(page.locator("#error")).to_contain_text("It is too large.")
    assert "Loading the model …" in page.evaluate("said")
