"""Opens pages in the machine's own Chromium through playwright, and keeps what the console calls errors.

The browser is the one that TAGPR_CHROMIUM names, or that of the system (Debian: `apt install chromium`); playwright's
own download is not used.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def find() -> str | None:
    """Path of a Chromium; None if this machine has none."""
    return os.environ.get("TAGPR_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def driver(path: str) -> Iterator[Callable[[], Browser]]:
    """A function that starts the Chromium at `path`, a new process at each call; all of them end with the context."""
    with sync_playwright() as playwright:
        started: list[Browser] = []

        def launch() -> Browser:
            started.append(playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"]))
            return started[-1]

        try:
            yield launch
        finally:
            for browser in started:
                browser.close()


@dataclass
class Tab:
    """A page in a tab, and what it did since it was opened."""

    page: Page
    open_s: float = 0.0
    """From the request to the second frame drawn after `load`."""
    errors: list[str] = field(default_factory=list)
    """Errors on the console and uncaught exceptions."""
    dialogs: list[str] = field(default_factory=list)


def open_tab(browser: Browser, place: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Tab:
    """Open a file or an address in a tab of its own profile and wait until it is drawn. Below 600 px it is a phone."""
    page = browser.new_page(
        viewport={"width": width, "height": height},
        is_mobile=width < 600,
        color_scheme="dark" if dark else "light",
    )
    tab = Tab(page)
    page.on("pageerror", lambda error: tab.errors.append(str(error)))
    page.on("console", lambda message: tab.errors.append(message.text) if message.type in ("error", "assert") else None)
    page.on("dialog", lambda dialog: (tab.dialogs.append(dialog.message), dialog.dismiss()))
    begun = time.monotonic()
    page.goto(place if isinstance(place, str) else place.resolve().as_uri())
    page.evaluate(DRAWN)
    tab.open_s = time.monotonic() - begun
    return tab
