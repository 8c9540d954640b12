"""The studio in a real browser, over a real (tiny) run: nothing that axe-core finds, readable at any width, a
prompt by mouse and by keyboard, and no request that leaves the studio."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from scenarios.studio.serve import opening, studio_at
from tests.browser.driving import DESKTOP, PHONE, TABLET, needs_chromium, picture, violations, window

pytestmark = needs_chromium

PAGES = {
    "home": "/",
    "result": "/run?at=0/done",
    "interrupted": "/run?at=0/broken-off",
    "compare": "/compare?first=0/done&second=0/twin",
    "ask": "/ask?at=0/done",
    "bank": "/bank?at=0/done",
    "audit": "/audit?at=0/done",
    "policy": "/policy",
    "gallery": "/gallery",
    "try": "/try",
    "fault": "/run?at=0/nothing",
}


@pytest.fixture(scope="module")
def address(tiny_runs: Path) -> Iterator[str]:
    """The printed address of a studio that serves the tiny runs."""
    twin = tiny_runs / "twin"
    if not twin.exists():
        twin.mkdir()
        for file in (tiny_runs / "done").glob("*.json*"):
            (twin / file.name).write_bytes(file.read_bytes())
    with studio_at([tiny_runs], 0) as (door, server, listener):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield door.address
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def root(browser: webdriver.Chrome, address: str) -> str:
    """The studio's address after the file for browsers was opened."""
    with opening(address) as file:
        browser.get(file.as_uri())
        WebDriverWait(browser, 20).until(lambda b: b.title == "Runs - casam studio")
    assert browser.current_url.endswith("/")  # the token is no longer in the address bar
    return browser.current_url.rstrip("/")


def said_by(browser: webdriver.Chrome) -> list[str]:
    """What the console says, without the answer of a page that tests a fault."""
    return [entry["message"] for entry in browser.get_log("browser") if "404" not in entry["message"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, TABLET, PHONE], ids=["desktop", "tablet", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_accessible_and_fits(
    browser: webdriver.Chrome, root: str, tmp_path: Path, name: str, size: tuple[int, int], scheme: str
) -> None:
    window(browser, size, scheme)
    browser.get(root + PAGES[name])
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    if size != TABLET:
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert violations(browser) == []
    picture(browser, tmp_path / f"studio-{name}-{size[0]}-{scheme}.png")
    assert said_by(browser) == []


def test_no_page_asks_another_host(browser: webdriver.Chrome, root: str) -> None:
    browser.get_log("performance")
    for path in PAGES.values():
        browser.get(root + path)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert len(asked) > len(PAGES)
    assert [url for url in asked if not url.startswith(root + "/")] == []


def opened(browser: webdriver.Chrome, root: str) -> None:
    """Open the image of the folder for the bank of the run."""
    browser.get(f"{root}/try")
    browser.find_element(By.XPATH, "//button[text()='Open it']").click()
    WebDriverWait(browser, 60).until(lambda b: b.find_elements(By.ID, "stage"))


def answers(browser: webdriver.Chrome) -> list[str]:
    """The titles of the answers, once they are there."""
    WebDriverWait(browser, 60).until(lambda b: b.find_element(By.ID, "clock").text != "")
    return [found.text for found in browser.find_elements(By.CSS_SELECTOR, ".answer h3")]


def test_a_box_by_mouse_is_answered_side_by_side(
    browser: webdriver.Chrome, root: str, tmp_path: Path
) -> None:
    window(browser, DESKTOP, "light")
    opened(browser, root)
    image = browser.find_element(By.CSS_SELECTOR, "#stage img")
    drag = ActionChains(browser).move_to_element_with_offset(image, -60, -50).click_and_hold()
    drag.move_by_offset(120, 100).release().perform()
    assert [title.split()[0] for title in answers(browser)] == ["frozen", "routed"]
    box = [int(number) for number in browser.find_element(By.ID, "boxes").get_attribute("value").split(",")]
    assert 0 <= box[0] < box[2] < 64
    assert 0 <= box[1] < box[3] < 48
    first, second = browser.find_elements(By.CSS_SELECTOR, ".answer")
    assert abs(first.rect["y"] - second.rect["y"]) < 2
    assert first.rect["x"] < second.rect["x"]
    drawn = "return [...document.querySelectorAll('.answer img')].every(i => i.naturalWidth)"
    assert browser.execute_script(drawn)
    seconds = float(browser.find_element(By.ID, "clock").text.split()[0])
    assert seconds < 1  # the tiny backbone; the page measures it itself
    assert violations(browser) == []
    picture(browser, tmp_path / "studio-prompt-1400-light.png")


def test_a_point_and_a_box_by_keyboard(browser: webdriver.Chrome, root: str, tmp_path: Path) -> None:
    window(browser, PHONE, "dark")
    opened(browser, root)
    browser.find_element(By.ID, "stage").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ENTER)
    assert len(answers(browser)) == 2
    assert browser.find_element(By.ID, "points").get_attribute("value") == "33, 25"
    corner = [*[Keys.ARROW_LEFT] * 5, *[Keys.ARROW_UP] * 5]
    browser.find_element(By.ID, "stage").send_keys(Keys.SPACE, *corner, Keys.SPACE)
    assert browser.find_element(By.ID, "boxes").get_attribute("value") == "28, 20, 33, 25"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert violations(browser) == []
    picture(browser, tmp_path / "studio-prompt-390-dark.png")


def test_a_point_that_is_not_the_object_leaves_one_mask(browser: webdriver.Chrome, root: str) -> None:
    window(browser, DESKTOP, "light")
    opened(browser, root)
    stage, image = (browser.find_element(By.CSS_SELECTOR, place) for place in ("#stage", "#stage img"))
    stage.send_keys(Keys.ENTER)
    stage.send_keys(Keys.ARROW_LEFT, Keys.ENTER)
    asked = (
        "return performance.getEntriesByType('resource').filter(e => e.name.endsWith('/try/segment')).length"
    )
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(asked) == 2)
    click = ActionChains(browser).key_down(Keys.SHIFT).move_to_element_with_offset(image, -60, -50)
    click.click().key_up(Keys.SHIFT).perform()
    WebDriverWait(browser, 60).until(lambda b: b.execute_script(asked) == 3)
    x, y = browser.find_element(By.ID, "negatives").get_attribute("value").split(",")
    assert 0 <= int(x) < 32
    assert 0 <= int(y) < 24
    kinds = [mark.get_attribute("class") for mark in browser.find_elements(By.CSS_SELECTOR, ".mark")]
    assert kinds == ["mark point", "mark point", "mark negative"]
    said = (By.CSS_SELECTOR, ".answer p")
    WebDriverWait(browser, 60).until(lambda b: b.find_element(*said).text.count("pixels") == 1)
    assert violations(browser) == []


def test_a_policy_in_words_fits_a_phone(browser: webdriver.Chrome, root: str, tmp_path: Path) -> None:
    window(browser, PHONE, "light")
    browser.get(f"{root}/policy")
    Select(browser.find_element(By.ID, "scenario")).select_by_visible_text("quickstart")
    browser.find_element(By.CSS_SELECTOR, "form button").send_keys(Keys.ENTER)
    WebDriverWait(browser, 120).until(lambda b: b.find_elements(By.ID, "p-2"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert violations(browser) == []
    picture(browser, tmp_path / "studio-words-390-light.png")


def test_a_question_is_answered_while_one_waits(browser: webdriver.Chrome, root: str, tmp_path: Path) -> None:
    window(browser, PHONE, "light")
    browser.get(f"{root}/run?at=0/done")
    browser.find_element(By.LINK_TEXT, "What would another policy give?").click()
    Select(browser.find_element(By.ID, "institution")).select_by_visible_text("north")
    Select(browser.find_element(By.ID, "clause")).select_by_value("router")
    browser.find_element(By.ID, "value").send_keys("never", Keys.ENTER)
    WebDriverWait(browser, 20).until(lambda b: "so far" in b.find_element(By.ID, "live").text)
    WebDriverWait(browser, 120).until(lambda b: b.find_elements(By.CSS_SELECTOR, "#live table"))
    assert "answered after" in browser.find_element(By.CSS_SELECTOR, "#live [role=status]").text
    assert browser.find_element(By.ID, "value").get_attribute("value") == "never"  # the question stays
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert violations(browser) == []
    picture(browser, tmp_path / "studio-answer-390-light.png")


def test_the_gallery_zooms_and_closes_with_the_keyboard(browser: webdriver.Chrome, root: str) -> None:
    window(browser, DESKTOP, "light")
    browser.get(f"{root}/gallery")
    browser.find_element(By.CSS_SELECTOR, "[data-zoom]").send_keys(Keys.ENTER)
    dialog = browser.find_element(By.ID, "zoom")
    assert dialog.is_displayed()
    assert violations(browser) == []
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not dialog.is_displayed()


def test_the_first_tab_leads_past_the_menu(browser: webdriver.Chrome, root: str) -> None:
    browser.get(root)
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert browser.execute_script("return document.activeElement.className") == "skip"


def test_a_page_of_elsewhere_can_neither_read_nor_change_anything(
    browser: webdriver.Chrome, root: str, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.html"
    foreign.write_text("<title>elsewhere</title>")
    browser.get(foreign.as_uri())
    script = """
    const [root, done] = [arguments[0], arguments[1]];
    const ask = (path, more) => fetch(root + path, {credentials: 'include', ...more})
        .then(a => a.type + a.status).catch(() => 'refused');
    Promise.all([ask('/'), ask('/start', {method: 'POST'}),
        ask('/gallery', {mode: 'no-cors'})]).then(done);
    """
    read, changed, opaque = browser.execute_async_script(script, root)
    assert (read, changed) == ("refused", "refused")
    assert opaque in ("refused", "opaque0")  # nothing of it can be read
