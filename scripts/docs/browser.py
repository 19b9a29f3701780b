"""A headless Chromium for looking at our own pages: which one there is, pictures in several sizes,
and what the browser complains of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZES = {"phone": (390, 844), "tablet": (820, 1180), "desktop": (1280, 900)}
SCHEMES = ("light", "dark")
INSTALLED = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NoBrowser(RuntimeError):
    """There is no Chromium, or no playwright to drive it; the text says which and how to get it."""


@dataclass
class LayerInput:
    """What happened while a page was open."""

    console: list[str] = field(default_factory=list)  # errors and warnings
    requests: list[str] = field(default_factory=list)  # of anything but the page itself


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser (playwright's `Browser`). Raises NoBrowser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise NoBrowser("playwright is not installed; make test-browser installs it") from None
    with sync_playwright() as driver:
        own = Path(driver.chromium.executable_path)
        path = str(own) if own.is_file() else next(filter(None, map(shutil.which, INSTALLED)), None)
        if path is None:
            raise NoBrowser(
                "no Chromium was found; apt-get install chromium, or .venv/bin/playwright install"
                " chromium"
            )
        try:
            browser = driver.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
        except Error as failure:
            raise NoBrowser(f"{path} did not start: {str(failure).splitlines()[0]}") from None
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Any, file: Path, size: str, scheme: str, script: bool = True
) -> Iterator[tuple[Any, LayerInput]]:
    """A local page in a window of `size` and colour `scheme`; nothing it asks of the network is
    answered."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=script
    )
    page, seen, address = context.new_page(), LayerInput(), file.resolve().as_uri()
    page.on(
        "console",
        lambda said: seen.console.append(said.text) if said.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda failure: seen.console.append(str(failure)))

    def answer(route: Any) -> None:
        if route.request.url.partition("#")[0] == address:
            route.continue_()
        else:
            seen.requests.append(route.request.url)
            route.abort()

    page.route("**/*", answer)
    page.goto(address)
    try:
        yield page, seen
    finally:
        context.close()
