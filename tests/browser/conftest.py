"""A browser, the real server, and the page in it."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.browser import DESKTOP, KEY
from tests.support.running import Running, running

MINUTE = 60_000  # milliseconds; a bound that only a hang reaches
# it would ask hosts of its maker's
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
         "--disable-quic", "--disable-gpu"]  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium: `SD_CHROMIUM`, the system's, or else Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("SD_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("browser"), SD_API_KEY=KEY) as instance:
        yield instance


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    """The page, open and connected. What the browser complains of, such as the content policy, fails the test."""
    context = browser.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
    context.set_default_timeout(MINUTE)
    expect.set_options(timeout=MINUTE)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    foreign: list[str] = []
    page.on("request", lambda sent: foreign.append(sent.url) if not sent.url.startswith((server.url, "blob:", "data:"))
            else None)  # fmt: skip
    page.goto(f"{server.url}/k/{KEY}")
    expect(page.locator("#state")).to_contain_text("embedded")
    yield page
    # the page may be asking for its models still, and a route's handler would fail the next test
    page.unroute_all(behavior="ignoreErrors")
    # a refusal is told to the console as well
    assert not [complaint for complaint in complaints if "Failed to load resource" not in complaint]
    assert not foreign
    context.close()
