"""The page in a real browser: an image goes in, labels are typed, bars and a mask appear; what goes wrong is said in words."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from sightline.models.clip import Clip
from sightline.serve.engine import Engine
from sightline.serve.http import build
from sightline.serve.service import Service
from tests.serve.conftest import LIMITS, encoded, picture

pytestmark = pytest.mark.browser

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def url(model: Clip) -> Iterator[str]:
    """The app behind a real socket, without Ray."""
    server = uvicorn.Server(uvicorn.Config(build(Service(Engine(model), LIMITS)), port=0, log_level="error"))
    started = threading.Event()
    original = server.startup

    async def startup(*args: object, **kwargs: object) -> None:
        await original(*args, **kwargs)
        started.set()

    server.startup = startup
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def open_page(url: str) -> Iterator[Page]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is absent: the page is tested in a real browser (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser.new_page(viewport={"width": 1280, "height": 860})
        browser.close()


@pytest.fixture
def page(open_page: Page, url: str) -> Iterator[Page]:
    """The page, freshly loaded; it may not fail in its own script, nor ask anybody but this service."""
    failures: list[str] = []
    asked: list[str] = []

    def failed(error: object) -> None:
        failures.append(str(error))

    def requested(request: object) -> None:
        asked.append(request.url)  # type: ignore[attr-defined]

    open_page.on("pageerror", failed)
    open_page.on("request", requested)
    open_page.goto(url)
    expect(open_page.locator("#model b")).to_have_text("tiny-clip")
    yield open_page
    open_page.remove_listener("pageerror", failed)
    open_page.remove_listener("request", requested)
    assert failures == []
    assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(picture(160, 120)))
    return path


def ask(page: Page, photo: Path, labels: str) -> None:
    page.fill("#labels", labels)
    page.set_input_files("#file", photo)


def test_an_image_and_labels_give_bars_and_a_mask(page: Page, model: Clip, photo: Path) -> None:
    expect(page.locator("#model")).to_contain_text(model.revision[:12])
    ask(page, photo, "a cat, a dog\nsnow, a cat")
    expect(page.locator("#bars li")).to_have_count(3)
    scores = [float(text.split()[0]) for text in page.locator("#bars .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(100, abs=0.2)
    expect(page.locator("#legend li")).to_have_count(4)  # three labels and what none of them is
    shares = [float(text.split()[0]) for text in page.locator("#legend .share").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    expect(page.locator("#mask")).to_have_js_property("naturalWidth", 160)
    expect(page.locator("#mask")).to_have_js_property("naturalHeight", 120)
    expect(page.locator("#wrong")).to_be_hidden()


def test_the_mask_lies_on_the_image(page: Page, photo: Path) -> None:
    ask(page, photo, "a cat, a dog")
    expect(page.locator("#mask")).to_be_visible()
    assert page.locator("#mask").bounding_box() == page.locator("#image").bounding_box()
    page.locator("#opacity").fill("0")
    expect(page.locator("#mask")).to_have_css("opacity", "0")


def test_the_keyboard_is_enough(page: Page) -> None:
    page.focus("#labels")
    page.keyboard.type("a cat, a dog")
    page.keyboard.press("Tab")  # "Look" cannot be reached while there is no image
    assert page.evaluate("document.activeElement.id") == "example"
    page.keyboard.press("Enter")
    expect(page.locator("#bars li")).to_have_count(3)
    page.fill("#labels", "one, two")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#bars li")).to_have_count(2)
    assert page.evaluate("document.querySelector('#labels').labels[0].innerText") == "Labels"


def test_a_dropped_image_is_taken(page: Page) -> None:
    page.fill("#labels", "a cat, a dog")
    page.evaluate(
        """async () => {
            const transfer = new DataTransfer();
            const blob = await (await fetch('example.jpg')).blob();
            transfer.items.add(new File([blob], 'dropped.jpg', {type: 'image/jpeg'}));
            document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true}));
        }"""
    )
    expect(page.locator("#bars li")).to_have_count(2)


def test_what_goes_wrong_is_said_in_words(page: Page, photo: Path, tmp_path: Path) -> None:
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"no image at all")
    ask(page, junk, "a cat")
    expect(page.locator("#wrong")).to_contain_text("send a whole JPEG, PNG")
    expect(page.locator("#bars li")).to_have_count(0)
    noise = tmp_path / "noise.png"
    noise.write_bytes(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))))
    ask(page, noise, "a cat")
    expect(page.locator("#wrong")).to_contain_text("200,000")
    ask(page, photo, "a cat")
    expect(page.locator("#bars li")).to_have_count(1)
    expect(page.locator("#wrong")).to_be_hidden()


def test_labels_are_text_and_never_markup(page: Page, photo: Path) -> None:
    ask(page, photo, "<img src=x onerror=alert(1)>, <b>bold</b>")
    expect(page.locator("#bars li")).to_have_count(2)
    assert page.locator("#bars img, #bars b, #legend img, #legend b").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 820, 1600])
def test_every_width_and_both_schemes_hold_the_page(page: Page, photo: Path, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    ask(page, photo, ", ".join(f"a label of quite some length, number {i}" for i in range(9)))
    expect(page.locator("#bars li")).to_have_count(10)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (brightness(ground) < brightness(ink)) == (scheme == "dark")


def brightness(colour: str) -> float:
    return sum(float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
