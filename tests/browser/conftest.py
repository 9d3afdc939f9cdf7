"""A real Chromium on a page from disk, with the network off."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Playwright

from tests.narrowing import present

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)


def _playwright() -> Callable[[], AbstractContextManager[Playwright]]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("playwright is not installed")
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium must be there in CI: apt-get install chromium")
        pytest.skip("Chromium is not installed")
    return sync_playwright


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Closed with its module: while it is open, no event loop can be run in this thread."""
    with _playwright()() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


class Visit:
    """A page that was opened, with everything that the browser complained of or asked the network for."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", self._dismiss)
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())

    def _dismiss(self, dialog: Dialog) -> None:
        self.complaints.append(dialog.message)
        dialog.dismiss()

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def until(self, expression: str) -> None:
        """Wait for a JavaScript expression to hold; the page's policy forbids Playwright's own way to wait."""
        end = time.monotonic() + 15
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, f"never came: {expression}"
            self.page.wait_for_timeout(25)

    def shown(self) -> list[str]:
        shown: list[str] = self.page.eval_on_selector_all(
            "#rows > li", "rows => rows.filter(row => !row.hidden).map(row => row.dataset.id)"
        )
        return shown

    def text(self, selector: str) -> str:
        return present(self.page.locator(selector).text_content())


OpenPage = Callable[..., Visit]


@pytest.fixture
def visit(browser: Browser) -> Iterator[OpenPage]:
    """Open a page from disk; at the end the browser must have complained of nothing and asked for nothing."""
    contexts: list[BrowserContext] = []
    visits: list[Visit] = []

    def open_page(path: Path, **options: Any) -> Visit:
        options = {"viewport": {"width": 1280, "height": 900}, "offline": True, **options}
        context = browser.new_context(**options)
        contexts.append(context)
        visits.append(Visit(context.new_page(), path))
        return visits[-1]

    yield open_page
    for context in contexts:
        context.close()
    for opened in visits:
        assert opened.complaints == []
        assert [url for url in opened.requests if not url.startswith(("file:", "blob:", "data:"))] == []
