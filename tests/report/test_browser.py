"""The pages in a real browser, opened from disk: figures, sorting, tooltips, phones, and no network."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import headless_chromium

pytestmark = pytest.mark.browser

PHONE, DESK = 390, 1200


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that logs what it asks the network for."""
    with headless_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def pages(
    call: Callable[..., int],
    pruned_run: Path,
    tiny_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A report as the run left it, one of a run whose data is gone, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    lost = ["report", tiny_run, "--data", "no/such/data", "--out", folder / "lost.html"]
    assert call(*lost) == 0
    both = ["compare", tiny_run, pruned_run, "--reference", "--out", folder / "compare.html"]
    assert call(*both) == 0
    names = {"lost": folder / "lost.html", "compare": folder / "compare.html"}
    return {"report": pruned_run / "report.html", **names}


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Callable[..., Any]:
    """Opens a page at a width and returns the browser; its logs are empty before."""

    def open_page(name: str, width: int = DESK, scheme: str = "light") -> Any:
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(pages[name].as_uri())
        return browser

    return open_page


@pytest.mark.parametrize("name", ["report", "lost", "compare"])
def test_it_opens_without_errors_and_without_a_network(
    opened: Callable[..., Any], pages: dict[str, Path], name: str
) -> None:
    browser = opened(name)
    assert browser.get_log("browser") == []
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
    assert pages[name].as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1


@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("name", ["report", "compare"])
def test_every_figure_is_drawn_and_the_page_does_not_scroll_sideways(
    opened: Callable[..., Any], name: str, width: int
) -> None:
    browser = opened(name, width)
    figures = browser.execute_script(
        """
        const box = (shape) => { const b = shape.getBoundingClientRect(); return [b.width, b.height]; };
        return [...document.querySelectorAll("svg[role=img], .clip img")].map((figure) => ({
          label: figure.getAttribute("aria-label") ?? figure.alt, box: box(figure),
          loaded: figure.complete ?? true, natural: figure.naturalWidth ?? 1,
          marks: [...figure.querySelectorAll("rect, circle, line, polyline")].map(box),
        }));
        """
    )
    assert len(figures) == {"report": 8 + 6, "compare": 2}[name]
    for figure in figures:
        assert figure["label"]
        assert min(figure["box"]) > 80, figure["label"]
        assert figure["loaded"]
        assert figure["natural"] > 0
        if not figure["label"].startswith("Network input of"):
            assert sum(max(mark) > 2 for mark in figure["marks"]) > 5, figure["label"]
    across = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    whole, visible = browser.execute_script(across)
    assert whole <= visible <= width


def test_tables_sort_by_click_and_by_keyboard(opened: Callable[..., Any]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser = opened("report")
    table = browser.find_element(By.CSS_SELECTOR, 'table[aria-label="By class"]')
    name, accuracy, loss, _ = table.find_elements(By.CSS_SELECTOR, "thead button")

    def column(number: int) -> list[str]:
        cells = table.find_elements(By.CSS_SELECTOR, f"tbody tr > :nth-child({number})")
        return [cell.text for cell in cells]

    names, losses = column(1), [float(text) for text in column(3)]
    assert len(set(losses)) > 3
    loss.click()
    assert [float(text) for text in column(3)] == sorted(losses, reverse=True)
    assert column(1) != names
    head = loss.find_element(By.XPATH, "..")
    assert head.get_attribute("aria-sort") == "descending"
    loss.click()
    assert [float(text) for text in column(3)] == sorted(losses)
    assert head.get_attribute("aria-sort") == "ascending"
    name.send_keys(Keys.ENTER)
    assert column(1) == sorted(names)
    assert head.get_attribute("aria-sort") is None
    accuracy.send_keys(Keys.SPACE)
    assert [float(text) for text in column(2)] == sorted(map(float, column(2)), reverse=True)


def test_tooltips(opened: Callable[..., Any], pruned_run: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    browser = opened("report")
    tip = browser.find_element(By.ID, "tip")
    assert not tip.is_displayed()
    lines = (pruned_run / "metrics.jsonl").read_text().splitlines()
    (second,) = (line for line in map(json.loads, lines) if line["epoch"] == 1 and "lr" in line)
    band = browser.find_elements(By.CSS_SELECTOR, "svg .band")[1]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", band)
    ActionChains(browser).move_to_element(band).perform()
    assert tip.is_displayed()
    assert tip.text.startswith(f"epoch 2: training {second['train_loss']:.4g}, validation ")
    inside = "const b = arguments[0].getBoundingClientRect(); return [b.left, b.right, innerWidth]"
    left, right, width = browser.execute_script(inside, tip)
    assert 0 <= left < right <= width
    beside = band.find_element(By.XPATH, "ancestor::figure/figcaption")  # in sight: no scrolling
    ActionChains(browser).move_to_element(beside).perform()
    assert not tip.is_displayed()
    assert browser.find_elements(By.CSS_SELECTOR, "svg title") == [], "one tooltip, not two"


def test_it_follows_light_and_dark(opened: Callable[..., Any]) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    shades = {}
    for scheme in ("light", "dark"):
        text = opened("report", scheme=scheme).execute_script(colour)
        shades[scheme] = sum(int(part) for part in text[4:-1].split(",")) / 3
    assert shades["light"] > 240
    assert shades["dark"] < 40


def test_the_sounds_can_be_played(opened: Callable[..., Any]) -> None:
    browser = opened("report")
    seconds = browser.execute_async_script(
        """
        const [done, sounds] = [arguments[0], [...document.querySelectorAll("audio")]];
        Promise.all(sounds.map((sound) => new Promise((ready) => {
          sound.onloadedmetadata = () => ready(sound.duration);
          sound.onerror = () => ready(sound.error.message);
          sound.load();
          sound.preload = "metadata";
        }))).then(done);
        """
    )
    assert seconds == pytest.approx([1.0] * 6, abs=0.01)
