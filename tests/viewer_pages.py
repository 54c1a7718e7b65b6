"""Fixtures of the viewer's browser tests: Chromium by Selenium, pages of the built-in world, and one of them open.

    apt install chromium chromium-driver; pip install selenium; pytest -m browser

A test file takes them with `pytest_plugins = ["viewer_pages"]`.
"""

import shutil

import pytest
from viewing import FRAMES, SIZE, Viewer, perturbed, webdriver

from data.draw.viewer import Page
from data.streets.source import render_video, tracked_only


@pytest.fixture(scope="session")
def browser():
    if webdriver is None:
        pytest.skip("selenium is missing: pip install selenium")
    places = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    chromium, driver = next(filter(None, places), None), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no browser: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1300,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    running.set_script_timeout(30)
    yield running
    running.quit()


@pytest.fixture(scope="session")
def frames():
    """(image, semantic, track) of the built-in world."""
    world = render_video(0, "test", FRAMES, SIZE)
    return [(image, semantic, tracked_only(semantic, instance)) for image, semantic, instance in world]


@pytest.fixture(scope="session")
def pages(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    with Page(folder / "plain_view.html") as page:
        for k, frame in enumerate(frames):
            page.add(*frame, number=100 + k)
    with Page(folder / "truth_view.html") as page:
        for k, (image, *truth) in enumerate(frames):
            page.add(image, *perturbed(*truth, k), truth=tuple(truth))
    with Page(folder / "two_view.html", runs=("first", "second")) as page:
        for k, (image, *labels) in enumerate(frames):
            page.add(image, *labels, other=perturbed(*labels, k))
    return folder


@pytest.fixture
def opened(browser, pages):
    def go(name: str) -> Viewer:
        return Viewer(browser, pages / f"{name}_view.html")

    return go
