"""The page of a report in a browser: all pictures drawn, no error, on a phone, light and dark, on
paper.
"""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import orchestrator
from orchestrator.store import Store
from tests.support.told import fill, told

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path"),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
    "--disable-background-networking --disable-sync --virtual-time-budget=5000000"
)
DARK = "@media screen and (prefers-color-scheme: dark)"
_MEDIA = {True: "@media all", False: "@media speech"}
# what goes wrong in the page is written down before anything else runs in it
LISTEN = """<script>
window.wrong = [];
addEventListener('error', event => wrong.push(String(event.message)));
addEventListener('unhandledrejection', event => wrong.push(String(event.reason)));
console.error = (...words) => wrong.push(words.join(' '));
</script>"""
# Virtual time stands still where the browser works, but not for the thread that unpacks: looking
# often makes real time pass. Once all is seen, nothing is waited for, and time jumps to its end.
LOOK = """
const frames = [...document.querySelectorAll('iframe')];
const drawn = frame => frame.contentDocument?.documentElement.dataset.pictures === 'drawn';
const seen = frame => {
  const page = frame.contentDocument;
  return {
    wrong: frame.contentWindow.wrong,
    width: page.documentElement.scrollWidth,
    plots: [...page.querySelectorAll('.plot')].map(plot => ({
      key: plot.id,
      marks: plot.querySelectorAll('.plot-container path, image, .point').length,
      width: plot.querySelector('.main-svg').clientWidth,
      room: plot.clientWidth,
    })),
    ground: getComputedStyle(page.documentElement).backgroundColor,
    label: getComputedStyle(page.querySelector('.xtick text')).fill,
  };
};
const look = () => {
  if (!frames.every(drawn)) return setTimeout(look, 2);
  document.getElementById('seen').textContent = JSON.stringify(frames.map(seen));
};
look();
"""


def chromium(directory: Path, page: Path, *words: str) -> str:
    done = subprocess.run(
        [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={directory}/profile", *words, str(page)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout


class Browser:
    """Shows a report within frames of given widths: a browser's window cannot be as narrow as a
    phone.
    """

    def __init__(self, directory: Path, report: str) -> None:
        self._directory, self._report = directory, report

    def _page(self, *views: tuple[int, int, bool]) -> Path:
        """A page with frames of a width and a height, dark or light."""
        assert DARK in self._report
        report = self._report.replace("<head>", f"<head>{LISTEN}", 1)
        frames = [
            f'<iframe srcdoc="{html.escape(report.replace(DARK, _MEDIA[dark]))}" style="border:0;'
            f'display:block;width:{width}px;height:{height}px"></iframe>'
            for width, height, dark in views
        ]
        file = self._directory / "frames.html"
        file.write_text(
            f'<!doctype html><meta charset="utf-8"><body style="margin:0">{"".join(frames)}'
            f'<script type="text/plain" id="seen"></script><script>{LOOK}</script>',
            encoding="utf-8",
        )
        return file

    def seen(self, *views: tuple[int, int, bool]) -> list[dict[str, Any]]:
        """What is in each frame once all is drawn."""
        dom = chromium(self._directory, self._page(*views), "--dump-dom")
        found = re.search(r'id="seen">(.*?)</script>', dom, re.DOTALL)
        assert found is not None
        assert found[1], "the pictures were not drawn"
        seen: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
        return seen

    def grey(self, width: int, height: int, *views: bool) -> list[np.ndarray[Any, Any]]:
        """The frames in shades of grey, 0 to 255, each in 16 by 16 fields."""
        image = self._directory / "seen.png"
        chromium(
            self._directory,
            self._page(*((width, height, dark) for dark in views)),
            f"--screenshot={image}",
            f"--window-size={width},{height * len(views)}",
        )
        shot = Image.open(io.BytesIO(image.read_bytes())).convert("L")
        parts = [shot.crop((0, k * height, width, (k + 1) * height)) for k in range(len(views))]
        return [
            np.asarray(part.resize((16, 16), Image.Resampling.BOX), dtype=float) for part in parts
        ]


@pytest.fixture
def browser(store: Store, tmp_path: Path) -> Browser:
    fill(store, told(per_cell=3), steps=8)
    return Browser(tmp_path, orchestrator.study("told", storage=store.url).report().html())


def test_a_browser_draws_every_picture_wide_and_narrow_light_and_dark(browser: Browser) -> None:
    wide, phone = browser.seen((1280, 900, False), (380, 900, True))
    assert (wide["wrong"], phone["wrong"]) == ([], [])
    assert len(wide["plots"]) > 10
    assert [plot["key"] for plot in phone["plots"]] == [plot["key"] for plot in wide["plots"]]
    for plot in (*wide["plots"], *phone["plots"]):
        assert plot["marks"] > 3, plot["key"]
        assert plot["width"] <= plot["room"], plot["key"]
    assert (wide["width"], phone["width"]) == (1280, 380), "no scrolling to the side"
    assert (wide["ground"], phone["ground"]) == ("rgb(255, 255, 255)", "rgb(20, 23, 28)")
    assert phone["label"] != wide["label"]


@pytest.mark.nightly
def test_what_is_seen_is_a_page_with_things_on_it(browser: Browser) -> None:
    light, dark = browser.grey(1280, 3000, False, True)
    assert light.mean() > 200
    assert dark.mean() < 80
    ground = np.median(light)
    assert ground > 240
    assert 0.2 < (np.abs(light - ground) > 4).mean() < 0.95  # neither empty nor full
    assert np.corrcoef(light.ravel(), -dark.ravel())[0, 1] > 0.3  # the same things


@pytest.mark.nightly
def test_on_paper_it_takes_a_few_pages(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(browser._report, encoding="utf-8")
    paper = tmp_path / "report.pdf"
    chromium(tmp_path, page, "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    pages = re.findall(rb"/Type\s*/Page\b", paper.read_bytes())
    assert 3 <= len(pages) <= 20
