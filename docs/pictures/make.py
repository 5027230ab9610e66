"""Makes the pictures of README and docs: a launch of the digits example in a terminal, its
dashboard page, and its report.

`make picture` runs the example, so it takes a few minutes. It needs Chromium. The pictures show
what that run printed and what the dashboard served, with nothing edited. The end of the launch goes
to standard output: README quotes it, so copy it there when you renew the pictures.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMAND = "orchestrator launch experiment=digits"
COLUMNS, ROWS = 96, 24
PAGE = (1280, 1060)  # pixels
REPORT = (1180, 1440)
PAGE_DRAWN_MS = 30_000  # of the page's own clock, which runs ahead while it waits
UP_WITHIN_S = 60

# How rich's live display goes back to the first line of the table it is about to replace.
BACK = re.compile(r"\r(?:\x1b\[2K|\x1b\[1A\x1b\[2K)(?:\x1b\[1A\x1b\[2K)*")
HEADLINE = re.compile(r"(?m)^(?:\x1b\[\?25l)?(\d+)/(\d+) trials, (\d+) running")


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("docs/pictures/make.py: install Chromium first; it draws the dashboard's page")
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"ORCHESTRATOR_DATA_DIR": directory, "TERM": "xterm-256color"}
        printed = launch(environment, Path(directory))
        half_way, end = screens(printed)
        print(end)
        (HERE / "launch.svg").write_text(drawn(half_way))
        with dashboard(environment) as address:
            shoot(browser, address, HERE / "dashboard.png", Path(directory), PAGE)
        page = Path(directory) / "report.html"
        words = [sys.executable, "-m", "orchestrator", "report", f"out={page}"]
        subprocess.run(words, cwd=ROOT, env=environment, check=True)
        shoot(browser, page.as_uri(), HERE / "report.png", Path(directory), REPORT)


def launch(environment: dict[str, str], directory: Path) -> str:
    """All that the launch wrote to a terminal of COLUMNS x ROWS."""
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    words = [sys.executable, "-m", *COMMAND.split(), f"hydra.run.dir={directory}/output"]
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=terminal, stderr=terminal
    ) as process:
        os.close(terminal)
        printed = b"".join(chunks(ours))
    os.close(ours)
    text = printed.decode().replace("\r\n", "\n")
    if process.returncode:
        sys.exit(f"{text}\ndocs/pictures/make.py: the launch ended with {process.returncode}")
    return text


def chunks(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(terminal, 1 << 16)
        except OSError:  # Linux's way to say that the other end was closed
            return
        if not chunk:
            return
        yield chunk


def screens(printed: str) -> tuple[str, str]:
    """What the terminal showed when half of the trials had ended and two ran, and at the end."""
    above, half_way = "", None
    for part in BACK.split(printed):
        found = HEADLINE.search(part)
        above += part[: found.start()] if found else part
        if half_way is None and found and int(found[3]) > 1 and 2 * int(found[1]) >= int(found[2]):
            half_way = above + part[found.start() :]
        last = part
    if half_way is None:
        sys.exit("docs/pictures/make.py: the launch showed no table half way")
    return half_way, Text.from_ansi(last).plain


def drawn(screen: str) -> str:
    """An SVG of the terminal that loads no fonts."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {COMMAND}"), Text.from_ansi(screen.rstrip()), sep="\n")
    layout = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="orchestrator", code_format=layout, unique_id="launch")
    return "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"


@contextmanager
def dashboard(environment: dict[str, str]) -> Iterator[str]:
    """The address of the study's page, for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "orchestrator", "dashboard", f"dashboard.port={port}"]
    with subprocess.Popen(words, cwd=ROOT, env=environment) as process:
        try:
            (study,) = answered(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
            yield f"http://127.0.0.1:{port}/dashboard/studies/{study['study_id']}"
        finally:
            process.send_signal(signal.SIGTERM)


def answered(address: str) -> dict[str, list[dict[str, int]]]:
    """The JSON at `address`, once somebody listens there."""
    until = time.monotonic() + UP_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(address) as answer:
                return dict(json.load(answer))
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


def shoot(
    browser: str, address: str, picture: Path, directory: Path, size: tuple[int, int]
) -> None:
    quiet = ["quic", "background-networking", "component-update", "sync", "gpu"]
    words = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
    words += [f"--disable-{name}" for name in quiet]
    words += [f"--user-data-dir={directory}/browser", f"--window-size={size[0]},{size[1]}"]
    words += [f"--virtual-time-budget={PAGE_DRAWN_MS}", f"--screenshot={picture}", address]
    subprocess.run([browser, *words], check=True, stderr=subprocess.DEVNULL)
    with Image.open(picture) as shot:  # 64 colours are enough for a page, in a third of the bytes
        shot.convert("RGB").quantize(64).save(picture, optimize=True)


if __name__ == "__main__":
    main()
