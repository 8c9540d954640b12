"""Make the pictures of docs/studio.md and README.md: `python -m tests.browser.pictures RUNS`.

Writes docs/pictures/*.webp. RUNS: a folder whose newest run is a finished quickstart with own pictures
(`casam run quickstart --set evaluation.overlays=6`). The image to try is a phantom that no run has seen.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from client.data.phantoms import PHANTOMS
from client.evaluation.overlays import GAP, LIST, PANELS
from scenarios.studio.serve import studio_at
from scenarios.studio.shelf import Shelf
from tests.browser.driving import PHONE, chromium, picture, window

OUT = Path(__file__).resolve().parents[2] / "docs" / "pictures"
WIDE = (1200, 800)
HIGHEST = 900


def keep(browser: webdriver.Chrome, name: str, top: int = 0, height: int = HIGHEST) -> None:
    """Write one picture of the open page, from `top` on."""
    with tempfile.TemporaryDirectory() as folder:
        pixels: np.ndarray = picture(browser, Path(folder) / "page.png")
        OUT.mkdir(exist_ok=True)
        Image.fromarray(pixels[top : top + height]).save(OUT / f"{name}.webp", quality=80, method=6)


def new_image(folder: Path) -> tuple[int, int, int, int]:
    """Write a phantom polyp, and return its box: x0, y0, x1, y1."""
    painted = PHANTOMS["polyp"](np.random.default_rng(78), 256)
    folder.mkdir()
    Image.fromarray(painted.image_HW3).save(folder / "endoscopy.png")
    ys, xs = np.nonzero(painted.labels_HW)
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


def strips(run: Path) -> None:
    """A row per institution: of its own pictures the one with the median gain over frozen SAM."""
    side, head, beside = 190, 28, 150
    sheet = Image.new("RGB", (beside + len(PANELS) * (side + GAP), head + 3 * (side + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, panel in enumerate(PANELS):
        pen.text((beside + column * (side + GAP), 4), panel, "black", font)
    lists = sorted(run.glob(f"institutions/*/private/overlays/{LIST}"))
    for row, file in enumerate(lists):
        drawn = sorted(json.loads(file.read_text())["pictures"], key=lambda p: p["iou"] - p["frozen_iou"])
        middle, top = drawn[len(drawn) // 2], head + row * (side + GAP)
        ious = f"frozen {middle['frozen_iou']:.3f}\nbank {middle['iou']:.3f}"
        pen.text((0, top + 60), f"{middle['task']}\n\nIoU\n{ious}", "black", font)
        strip = Image.open(file.parent / middle["file"])
        width = (strip.width - GAP * (len(PANELS) - 1)) // len(PANELS)
        for column in range(len(PANELS)):
            left = column * (width + GAP)
            panel = strip.crop((left, 0, left + width, strip.height))
            panel.thumbnail((side, side), Image.Resampling.LANCZOS)
            sheet.paste(panel, (beside + column * (side + GAP), top))
    sheet.save(OUT / "strips.webp", quality=85, method=6)


def half(run: Path, folder: Path) -> None:
    """A copy of a run as it was in the middle of its second stage."""
    folder.mkdir()
    shutil.copy(run / "scenario.json", folder)
    lines = (run / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    last = next(n for n, event in enumerate(events) if event["event"] == "asked" and event["stage"] == 2)
    late = time.time() - events[last]["time"] - 20
    moved = [json.dumps(event | {"time": event["time"] + late}) for event in events[: last + 1]]
    (folder / "events.jsonl").write_text("\n".join(moved) + "\n")


def show(browser: webdriver.Chrome, root: str, at: str, box: tuple[int, int, int, int]) -> None:
    """All pictures. at: the newest run. box: of the object in the image to try."""
    pages = {"home": "/", "live": "/run?at=1/second-stage", "result": f"/run?at={at}", "gallery": "/gallery"}
    for name, path in pages.items():
        window(browser, WIDE, "light")
        browser.get(root + path)
        time.sleep(2)
        if name == "home":  # the folders of whoever makes the pictures
            browser.execute_script("document.querySelector('.lead').textContent = 'Folders: runs'")
        keep(browser, name, height={"live": 520, "result": 1330}.get(name, HIGHEST))
    window(browser, WIDE, "light")
    browser.get(f"{root}/policy")
    Select(browser.find_element(By.ID, "scenario")).select_by_visible_text("mixed-policy")
    institution = browser.find_element(By.ID, "institution")
    institution.clear()
    institution.send_keys("heart-centre")
    browser.find_element(By.CSS_SELECTOR, "form button").click()
    WebDriverWait(browser, 120).until(lambda b: b.find_elements(By.ID, "p-2"))
    keep(browser, "policy", top=browser.find_element(By.ID, "p-2").location["y"] - 20, height=760)
    browser.get(f"{root}/try")
    browser.find_element(By.XPATH, "//button[text()='Open it']").click()
    WebDriverWait(browser, 120).until(lambda b: b.find_elements(By.ID, "stage"))
    image = browser.find_element(By.CSS_SELECTOR, "#stage img")
    scale = image.size["width"] / 256
    x0, y0, x1, y1 = (int(scale * value) for value in box)
    middle = int(scale * 128)
    drag = ActionChains(browser).move_to_element_with_offset(image, x0 - middle, y0 - middle)
    drag.click_and_hold().move_by_offset(x1 - x0, y1 - y0).release().perform()
    WebDriverWait(browser, 120).until(lambda b: b.find_element(By.ID, "clock").text)
    keep(browser, "try", height=1500)
    window(browser, PHONE, "dark")
    browser.get(f"{root}/run?at={at}")
    top = browser.execute_script(
        "return document.querySelector('.heat').getBoundingClientRect().top + scrollY"
    )
    keep(browser, "phone", top=int(top) - 240, height=700)


def main(runs: Path) -> None:
    """Serve the folders and take the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        newest = Shelf.of([runs]).runs()[0]
        strips(newest.path)
        half(newest.path, Path(folder) / "second-stage")
        box = new_image(Path(folder) / "images")
        with studio_at([runs, Path(folder)], 0) as (door, server, listener):
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                with (Path(folder) / "second-stage" / "lock").open("a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)  # as the server of a working run does
                    with chromium(Path(folder) / "profile") as browser:
                        browser.get(door.address)
                        WebDriverWait(browser, 20).until(lambda b: b.title.startswith("Runs"))
                        show(browser, browser.current_url.rstrip("/"), newest.at, box)
            finally:
                server.should_exit = True
                thread.join()
    size = sum(file.stat().st_size for file in OUT.iterdir())
    print(f"{OUT}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
