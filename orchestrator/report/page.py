"""One self-contained HTML page with plotly pictures: it needs no network, is read on a phone, on
light and dark, and prints. The same content gives the same bytes.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from orchestrator.errors import OrchestratorError
from orchestrator.model import JSONValue, visible
from orchestrator.report.palette import SERIES

_HEIGHT: Final = 340
_DIGITS: Final = 7  # of a number in a picture
_GREY: Final = "#7d848e"  # read on white and on black, where the style has no say


def document(title: str, body: str, *, pictures: bool) -> str:
    """The page around `body`, which is HTML.

    Args:
        title: text.
        pictures: whether `body` has any from `plot`; plotly, two megabytes, is left out otherwise.
    """
    return _DOCUMENT.format(
        title=text(title), style=_STYLE, body=body, script=_script() if pictures else ""
    )


def text(of: str, *, quote: bool = True) -> str:
    """Text as HTML, in which every character is seen.

    Args:
        quote: whether quotes are escaped, too, as within an attribute.
    """
    return html.escape(visible(of), quote=quote)


def write(path: str | Path, content: str) -> Path:
    """Writes a page to a file; returns its path.

    Raises:
        OrchestratorError: it cannot be written.
    """
    file = Path(path)
    try:
        file.write_text(content, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OrchestratorError(
            f"out={path}: {error.strerror} ({file.absolute().parent}); give a file that you "
            "can write"
        ) from error
    return file


def plot(key: str, figure: Mapping[str, JSONValue], label: str) -> str:
    """The place of one picture within a page, and its data.

    Args:
        key: different for each picture of a page; letters, digits and hyphens.
        figure: as of `Picture`.
        label: what it shows, for those who do not see it.
    """
    layout = figure.get("layout")
    height = layout.get("height", _HEIGHT) if isinstance(layout, Mapping) else _HEIGHT
    return (
        f'<div class="plot" id="plot-{html.escape(key)}" role="img" '
        f'aria-label="{text(label)}" style="min-height:{height}px">'
        f'<script type="application/json">{script_json(figure)}</script></div>'
    )


def script_json(data: Any) -> str:
    """Compact JSON that may stand within a ``<script>``, with numbers as they can be drawn.

    What is not finite becomes null.
    """
    code = json.dumps(_drawable(data), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    # so that nothing in it ends the script, or begins a comment
    for character in "<>&":
        code = code.replace(character, f"\\u{ord(character):04x}")
    return code


def _drawable(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _drawable(value) for key, value in data.items()}
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, Iterable):
        return [_drawable(value) for value in data]
    if isinstance(data, float):
        return float(f"{data:.{_DIGITS}g}") if math.isfinite(data) else None
    return data


@cache
def _script() -> str:
    """Plotly, compressed, and what draws with it."""
    source = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    packed = base64.b64encode(gzip.compress(source, 9, mtime=0)).decode()
    return (
        f'<script type="text/plain" id="plotly">{packed}</script>\n'
        f"<script>const HEIGHT = {_HEIGHT}, TEMPLATE = {script_json(_TEMPLATE)};{_DRAW}</script>"
    )


_AXIS: Final[dict[str, JSONValue]] = {
    "automargin": True,
    "gridcolor": "rgba(128,128,128,0.22)",
    "zerolinecolor": "rgba(128,128,128,0.35)",
    "linecolor": "rgba(128,128,128,0.5)",
    "title": {"standoff": 8, "font": {"size": 12}},
}
_TEMPLATE: Final[dict[str, JSONValue]] = {
    "layout": {
        "font": {"family": "system-ui, sans-serif", "size": 11.5, "color": _GREY},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": list(SERIES),
        "margin": {"l": 48, "r": 16, "t": 14, "b": 40},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "scene": {
            side: {"gridcolor": "rgba(128,128,128,0.3)", "showbackground": False}
            for side in ("xaxis", "yaxis", "zaxis")
        },
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "font": {"size": 11}},
        "hoverlabel": {
            "bgcolor": "#20252c",
            "bordercolor": "#20252c",
            "font": {"color": "#f2f4f7", "size": 12},
            "align": "left",
        },
    }
}

_DOCUMENT: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
<noscript><style>.pictures, .plot {{ display: none; }}</style></noscript>
</head>
<body>
<main>
{body}
</main>
{script}
</body>
</html>
"""

_STYLE: Final = """
:root { --ground: #fff; --panel: #f6f7f9; --ink: #1b1f24; --dim: #57606a; --line: #d9dde3;
  --good: #1a7f4b; --open: #6b7280; --warn: #b54708; --note: #2f6fb5; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #14171c; --panel: #1c2027; --ink: #e8ebef; --dim: #a3acb8; --line: #343a44;
    --good: #4cc38a; --open: #9aa3ae; --warn: #f0a35e; --note: #79b4f2; } }
* { box-sizing: border-box; }
html { background: var(--ground); -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 12px; }
h3 { font-size: 15px; margin: 0 0 2px; overflow-wrap: anywhere; }
code { font: 0.92em ui-monospace, monospace; overflow-wrap: anywhere; }
code, dt, dd, h3, th, td { unicode-bidi: isolate; }
p.dim, .note { color: var(--dim); max-width: 70ch; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 16px; margin: 0; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
ol.statements { list-style: none; margin: 0; padding: 0; display: grid; gap: 10px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
ol.statements li { background: var(--panel); border-left: 4px solid var(--tone);
  border-radius: 4px; padding: 9px 14px; break-inside: avoid; }
ol.statements p { margin: 0; max-width: 85ch; overflow-wrap: anywhere; }
ol.statements .mark { color: var(--tone); font-weight: 650; font-size: 12px;
  text-transform: uppercase; letter-spacing: 0.04em; }
ol.statements .evidence, ol.statements .advice { color: var(--dim); font-size: 13.5px; }
ol.statements .advice { margin-top: 2px; color: var(--ink); }
.finding { --tone: var(--good); } .open { --tone: var(--open); }
.warning { --tone: var(--warn); } .note-statement { --tone: var(--note); }
.pictures { display: grid; gap: 26px 28px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure.wide { grid-column: 1 / -1; }
figcaption { color: var(--dim); font-size: 13px; line-height: 1.4; }
.plot { width: 100%; overflow: auto hidden; }
.plot.missing { color: var(--dim); padding: 16px 0; }
.plot .xtick text, .plot .ytick text, .plot .g-xtitle text, .plot .g-ytitle text,
.plot [class*="xtitle"], .plot [class*="ytitle"], .plot .legendtext, .plot .annotation-text,
.plot .cbaxis text { fill: var(--dim) !important; }
.plot .annotation-text { paint-order: stroke; stroke: var(--ground); stroke-width: 4px; }
.table { overflow-x: auto; margin: 0 0 6px; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { padding: 4px 16px 4px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.long { min-width: 40em; max-width: 60em; overflow-wrap: anywhere; white-space: normal; }
td.long:empty { min-width: 0; }
.number { text-align: right; }
tr.differs td { font-weight: 600; }
tr.under td { padding: 0 0 6px; white-space: normal; overflow-wrap: anywhere; }
tr.under code { white-space: pre-wrap; }
tr.over td { border-bottom: 0; }
tr.first td, tr.first th { border-top: 2px solid var(--line); }
@media (max-width: 560px) {
  main { padding: 16px 14px 32px; } h1 { font-size: 22px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; }
  figure.wide { overflow-x: auto; } figure.wide .plot { width: 680px; } }
@media print {
  @page { margin: 14mm; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  h2, h3, h2 + p.dim { break-after: avoid; }
  .pictures { grid-template-columns: 1fr 1fr; gap: 14px; }
  .plot { zoom: var(--printed, 0.6); }
  .table { overflow: visible; } table { font-size: 8.5pt; } td.long { min-width: 0; }
  th, td { white-space: normal; padding-right: 8px; } tr, tbody.pair { break-inside: avoid; } }
"""

_DRAW: Final = """
(() => {
  const plots = [...document.querySelectorAll('.plot')];
  const say = (plot, text) => {
    plot.textContent = text; plot.style.minHeight = ''; plot.classList.add('missing'); };
  if (!window.DecompressionStream) {
    plots.forEach(plot => say(plot,
      'This browser is too old to draw this picture: it cannot unpack data by itself ' +
      '(DecompressionStream). The statements and tables of this page are complete without it.'));
    return;
  }
  const fail = (plot, error) => {
    console.error(error); say(plot, 'This picture could not be drawn: ' + error); };
  const fine = !matchMedia('(pointer: coarse)').matches;
  const settings = { responsive: true, displayModeBar: false };
  const draw = async code => {
    const script = document.createElement('script');
    script.textContent = code;
    document.head.append(script);
    for (const plot of plots) {
      try {
        const figure = JSON.parse(plot.firstChild.textContent);
        plot.textContent = '';
        const layout = { height: HEIGHT, dragmode: fine ? 'zoom' : false, ...figure.layout,
          template: TEMPLATE };
        await Plotly.newPlot(plot, figure.data, layout, settings);
        plot.style.minHeight = '';
      } catch (error) {
        fail(plot, error);
      }
      await new Promise(done => setTimeout(done));
    }
    document.documentElement.dataset.pictures = 'drawn';
  };
  const packed = document.getElementById('plotly').textContent;
  const bytes = Uint8Array.from(atob(packed), character => character.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  new Response(unpacked).text().then(draw)
    .catch(error => plots.forEach(plot => fail(plot, error)));
  // on paper a picture has the width of its column, whatever it has on the screen
  addEventListener('beforeprint', () => plots.forEach(plot => {
    const wide = plot.parentElement.classList.contains('wide');
    const share = (wide ? 670 : 325) / plot.clientWidth;
    plot.style.setProperty('--printed', Math.min(1, share).toFixed(3)); }));
})();
"""
