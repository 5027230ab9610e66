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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
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
    "--disable-background-networking --disable-sync --disable-dev-shm-usage"
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
  if (!frames.every(drawn)) return setTimeout(look, 50);
  fetch('/seen', { method: 'POST', body: JSON.stringify(frames.map(seen)) });
};
look();
"""


@dataclass
class Site:
    """A page on this machine that tells what is seen in it."""

    page: bytes
    seen: Queue[bytes] = field(default_factory=Queue)

    @contextmanager
    def served(self) -> Iterator[str]:
        """Its address, for as long as the block lasts."""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(site.page if self.path == "/" else b"")

            def do_POST(self) -> None:
                site.seen.put(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def words(directory: Path, *more: str) -> list[str]:
    """The command line of a browser with a profile of its own."""
    return [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={directory}/profile", *more]


def shoot(directory: Path, page: Path, *more: str) -> None:
    """Has the browser draw a page and end, once its own clock, which runs ahead while the page
    waits, has reached 20 s.
    """
    subprocess.run(
        words(directory, "--virtual-time-budget=20000", *more, str(page)),
        capture_output=True,
        timeout=300,
        check=True,
    )


class Browser:
    """Shows a report within frames of given widths: a browser's window cannot be as narrow as a
    phone.
    """

    def __init__(self, directory: Path, report: str) -> None:
        self._directory, self._report = directory, report

    def _page(self, *views: tuple[int, int, bool]) -> str:
        """A page with frames of a width and a height, dark or light."""
        assert DARK in self._report
        report = self._report.replace("<head>", f"<head>{LISTEN}", 1)
        frames = [
            f'<iframe srcdoc="{html.escape(report.replace(DARK, _MEDIA[dark]))}" style="border:0;'
            f'display:block;width:{width}px;height:{height}px"></iframe>'
            for width, height, dark in views
        ]
        return (
            f'<!doctype html><meta charset="utf-8"><body style="margin:0">{"".join(frames)}'
            f"<script>{LOOK}</script>"
        )

    def seen(self, *views: tuple[int, int, bool]) -> list[dict[str, Any]]:
        """What is in each frame once all is drawn; a browser that shows nothing is started anew,
        for on a machine that is busy its own processes may miss each other.
        """
        site = Site(self._page(*views).encode())
        with site.served() as address:
            for k in range(4):
                browser = subprocess.Popen(
                    words(self._directory / str(k), "--remote-debugging-port=0", address),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                try:
                    seen: list[dict[str, Any]] = json.loads(site.seen.get(timeout=60))
                except Empty:
                    continue
                else:
                    return seen
                finally:
                    browser.kill()
                    browser.wait()
        raise AssertionError("four browsers have shown nothing")

    def grey(self, width: int, height: int, *views: bool) -> list[np.ndarray[Any, Any]]:
        """The frames in shades of grey, 0 to 255, each in 16 by 16 fields."""
        image, page = self._directory / "seen.png", self._directory / "frames.html"
        page.write_text(self._page(*((width, height, dark) for dark in views)), encoding="utf-8")
        shoot(
            self._directory,
            page,
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
    assert ground > 220
    assert 0.2 < (np.abs(light - ground) > 4).mean() < 0.95  # neither empty nor full
    assert np.corrcoef(light.ravel(), -dark.ravel())[0, 1] > 0.3  # the same things


@pytest.mark.nightly
def test_on_paper_it_takes_a_few_pages(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(browser._report, encoding="utf-8")
    paper = tmp_path / "report.pdf"
    shoot(tmp_path, page, "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    pages = re.findall(rb"/Type\s*/Page\b", paper.read_bytes())
    assert 3 <= len(pages) <= 20
