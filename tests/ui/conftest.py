"""A real project with a run behind it, its `nemotron ui`, and a browser on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from ui_support import UI, Visit, free_port, nemotron, new_project, start_ui, stop_ui

_CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UI]:
    """The UI of a project whose pipeline `learn` has run and whose step demo/numbers has failed once."""
    project = new_project(tmp_path_factory.mktemp("ui") / "project")
    done = nemotron(project, "pipelines", "run", "learn", "--project", str(project))
    assert done.returncode == 0, done.stderr
    failed = nemotron(project, "steps", "run", "demo/numbers", "n=1")
    assert failed.returncode == 1, failed.stderr
    running = start_ui(project, free_port())
    try:
        yield running
    finally:
        if running.process.poll() is None:
            stop_ui(running)  # and checks that nothing of it is left


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if path is None and "CI" not in os.environ:
        pytest.skip("no Chromium: install Debian's package chromium")
    assert path, ".ci/run installs Chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(_CHROMIUM))
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any, ui: UI) -> Iterator[Visit]:
    """A fresh visitor: no cookies, no local storage. Fails on a request that leaves loopback or an error in a page."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30_000)
    seen = Visit(page, ui, [], [])
    page.on("request", lambda r: seen.requests.append(r.url))
    page.on("websocket", lambda s: seen.requests.append(s.url))
    page.on("console", lambda m: seen.problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: seen.problems.append(str(e)))
    yield seen
    context.close()
    own = (ui.url, f"blob:{ui.url}", ui.url.replace("http", "ws"), "data:")
    assert seen.requests
    assert not [r for r in seen.requests if not r.startswith(own)]
    assert not seen.problems
