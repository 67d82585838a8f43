"""The page in a real browser: an image goes in, labels are typed, bars and a mask appear; what goes wrong is said in words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from sightline.models.clip import Clip
from sightline.serve.http import build
from sightline.serve.served import Served
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
    server = uvicorn.Server(uvicorn.Config(build(Service(Served.of(model), LIMITS)), port=0, log_level="error"))
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


def ask(page: Page, photo: Path | list[Path], labels: str) -> None:
    page.fill("#labels", labels)
    page.press("#labels", "Enter")
    page.set_input_files("#file", photo)


def test_an_image_and_labels_give_bars_and_a_mask(page: Page, model: Clip, photo: Path) -> None:
    expect(page.locator("#model")).to_contain_text(model.revision[:12])
    ask(page, photo, "a cat, a dog, snow, a cat")
    expect(page.locator("#chips li")).to_have_count(3)
    expect(page.locator("#bars li")).to_have_count(3)
    scores = [float(text.split()[0]) for text in page.locator("#bars .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(100, abs=0.2)
    expect(page.locator("#legend li")).to_have_count(4)  # three labels and what none of them is
    shares = [float(text.split()[0]) for text in page.locator("#legend .share").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    expect(page.locator("#mask")).to_have_js_property("width", 160)
    expect(page.locator("#mask")).to_have_js_property("height", 120)
    expect(page.locator("#wrong")).to_be_hidden()


def test_bars_follow_the_labels_as_they_change(page: Page, photo: Path) -> None:
    ask(page, photo, "a cat, a dog")
    expect(page.locator("#bars li")).to_have_count(2)
    page.type("#labels", "snow,")
    expect(page.locator("#bars li")).to_have_count(3)
    page.get_by_role("button", name="Remove a cat").click()
    expect(page.locator("#bars li")).to_have_count(2)
    assert page.locator("#chips .name").all_inner_texts() == ["a dog", "snow"]
    page.press("#labels", "Backspace")
    expect(page.locator("#bars li")).to_have_count(1)


def test_several_images_are_looked_at_together_and_a_bad_one_fails_alone(page: Page, photo: Path, tmp_path: Path) -> None:
    other, junk = tmp_path / "other.png", tmp_path / "junk.png"
    other.write_bytes(encoded(picture(90, 120, seed=5)))
    junk.write_bytes(b"no image at all")
    ask(page, [photo, junk, other], "a cat, a dog")
    thumbs = page.locator("#strip button")
    expect(thumbs).to_have_count(3)
    expect(thumbs.nth(1)).to_have_attribute("aria-label", "Image 2: not readable")
    expect(page.locator("#bars li")).to_have_count(2)
    thumbs.nth(1).click()
    expect(page.locator("#wrong")).to_contain_text("send a whole JPEG, PNG")
    thumbs.nth(2).focus()
    page.keyboard.press("Enter")
    expect(thumbs.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#mask")).to_have_js_property("width", 90)
    expect(page.locator("#wrong")).to_be_hidden()


def test_the_mask_lies_on_the_image(page: Page, photo: Path) -> None:
    ask(page, photo, "a cat, a dog")
    expect(page.locator("#mask")).to_be_visible()
    assert page.locator("#mask").bounding_box() == page.locator("#image").bounding_box()
    page.locator("#opacity").fill("0")
    expect(page.locator("#mask")).to_have_css("opacity", "0")


def faint(page: Page) -> int:
    """Pixels of the mask that are drawn faintly."""
    return int(
        page.evaluate(
            """() => {
                const canvas = document.querySelector('#mask');
                const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
                let count = 0;
                for (let i = 3; i < data.length; i += 4) count += data[i] > 0 && data[i] < 255;
                return count;
            }"""
        )
    )


def test_what_is_pointed_at_is_named_and_lit(page: Page, photo: Path) -> None:
    ask(page, photo, "a cat, a dog, snow")
    expect(page.locator("#legend li")).to_have_count(4)
    assert faint(page) == 0
    page.locator("#legend button").first.hover()
    largest = page.locator("#legend .name").first.inner_text()
    assert faint(page) > 0
    point = page.evaluate(
        """(label) => {  // a point of the page that shows this label
            const rgb = colours.find((one) => one.label === label).rgb;
            const box = document.querySelector('#mask').getBoundingClientRect();
            for (let i = 0; i < pixels.data.length; i += 4) {
                if (pixels.data[i + 3] && colourAt(pixels.data, i) === rgb) {
                    const scale = Math.min(box.width / pixels.width, box.height / pixels.height);
                    return [box.left + (box.width - pixels.width * scale) / 2 + (i / 4 % pixels.width + 0.5) * scale,
                            box.top + (box.height - pixels.height * scale) / 2 + (Math.floor(i / 4 / pixels.width) + 0.5) * scale];
                }
            }
        }""",
        largest,
    )
    page.mouse.move(*point)
    expect(page.locator("#under")).to_have_text(largest)
    page.mouse.move(1, 1)
    expect(page.locator("#under")).to_be_hidden()
    assert faint(page) == 0
    page.locator("#legend button").first.focus()  # without a mouse, too
    assert faint(page) > 0


def test_the_unknown_is_said_when_it_is_asked_for(page: Page, model: Clip, photo: Path) -> None:
    ask(page, photo, "a cat, a dog")
    expect(page.locator("#bars li")).to_have_count(2)
    expect(page.locator("#verdict")).to_be_hidden()
    page.check("#unknown")
    expect(page.locator("#verdict")).to_contain_text(re.compile("None of them|At least one"))
    expect(page.locator("#curl")).to_contain_text("unknown=true")


def test_the_command_gives_what_one_sees(page: Page, photo: Path, tmp_path: Path) -> None:
    ask(page, photo, "a cat, it's a dog")
    expect(page.locator("#bars li")).to_have_count(2)
    page.locator("#program summary").click()
    shown = page.locator("#curl").inner_text()
    done = subprocess.run(["sh", "-c", shown], cwd=photo.parent, capture_output=True, text=True, timeout=60)
    predictions = json.loads(done.stdout)["results"][0]["predictions"]
    assert [one["label"] for one in predictions] == page.locator("#bars .name").all_inner_texts()


def test_the_keyboard_is_enough(page: Page) -> None:
    page.focus("#labels")
    page.keyboard.type("a cat, a dog")
    page.keyboard.press("Enter")
    for _ in range(2):  # past the box for unknown; "Look" cannot be reached while there is no image
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "example"
    page.keyboard.press("Enter")
    expect(page.locator("#bars li")).to_have_count(5)
    page.focus("#labels")
    page.keyboard.type("one")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#bars li")).to_have_count(6)


def test_everything_that_can_be_used_has_a_name(page: Page, photo: Path) -> None:
    """What a screen reader would say: no control without a name, and the outcome is announced."""
    ask(page, photo, "a cat, a dog")
    expect(page.locator("#bars li")).to_have_count(2)
    page.locator("#program summary").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, summary, a')].filter((one) => one.offsetParent)
            .filter((one) => !(one.getAttribute('aria-label') || one.labels?.[0]?.innerText || one.innerText).trim())
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    expect(page.locator("#said")).to_contain_text(page.locator("#bars .name").first.inner_text())
    assert page.locator("#said").get_attribute("role") == "status"


def test_a_dropped_image_is_taken(page: Page) -> None:
    page.fill("#labels", "a cat, a dog,")
    page.evaluate(
        """async () => {
            const transfer = new DataTransfer();
            const blob = await (await fetch('example.jpg')).blob();
            transfer.items.add(new File([blob], 'dropped.jpg', {type: 'image/jpeg'}));
            document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true}));
        }"""
    )
    expect(page.locator("#bars li")).to_have_count(2)


def test_what_goes_wrong_is_said_in_words(page: Page, tmp_path: Path) -> None:
    noise = tmp_path / "noise.png"
    noise.write_bytes(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))))
    ask(page, noise, "a cat")
    expect(page.locator("#wrong")).to_contain_text("200,000")
    expect(page.locator("#bars li")).to_have_count(0)


def test_labels_are_text_and_never_markup(page: Page, photo: Path) -> None:
    ask(page, photo, "<img src=x onerror=alert(1)>, <b>bold</b>")
    expect(page.locator("#bars li")).to_have_count(2)
    assert page.locator("#bars img, #bars b, #legend img, #legend b, #chips b").count() == 0


def test_the_colours_can_be_chosen(page: Page) -> None:
    page.emulate_media(color_scheme="light")

    def dark() -> bool:
        return brightness(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 300

    seen = [dark()]
    for _ in range(3):
        page.click("#theme")
        seen.append(dark())
    assert seen == [False, False, True, False]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 820, 1600])
def test_every_width_and_both_schemes_hold_the_page(page: Page, photo: Path, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    ask(page, photo, ", ".join(f"a label of quite some length and number {i}" for i in range(9)))
    expect(page.locator("#bars li")).to_have_count(9)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (brightness(ground) < brightness(ink)) == (scheme == "dark")


def brightness(colour: str) -> float:
    return sum(float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
