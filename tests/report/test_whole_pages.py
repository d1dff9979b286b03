"""The pages of a finished run as a whole: their structure, and what a browser makes of them on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from adagrpo.pipeline import Run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "wbr", "input"}
NAMES = ("report", "diagnose")


@pytest.fixture(scope="module")
def pages(finished: Path, data: Path, world: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The HTML of the report and of the diagnosis, by name."""
    directory = Path(shutil.copytree(finished, tmp_path_factory.mktemp("pages") / "run"))
    run: Run = world.run(directory, data)
    assert "Does re-ranking by this reward help" not in (directory / "report.html").read_text(encoding="utf-8")
    run.diagnose()
    return {name: (directory / f"{name}.html").read_text(encoding="utf-8") for name in NAMES}


class Structure(HTMLParser):
    """Where tables stand, what charts are called, and what is linked."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[tuple[str, dict[str, str | None]]] = []  # what each is in
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids += [str(given["id"])] if "id" in given else []
        self.links += [str(value) for name, value in attributes if name in ("href", "src", "action", "data", "poster")]
        if tag == "table":
            self.tables.append(self.open[-1])
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if tag not in VOID:
            self.open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag


@pytest.mark.parametrize("name", NAMES)
def test_structure(pages: dict[str, str], name: str) -> None:
    page, structure = pages[name], Structure()
    structure.feed(page)
    assert not structure.open and len(structure.ids) == len(set(structure.ids))
    inner = [link[1:] for link in structure.links if link.startswith("#")]
    assert inner and set(inner) <= set(structure.ids)
    assert {link for link in structure.links if not link.startswith("#")} <= {"diagnose.html", "users.html"}
    assert not re.search(r"https?:|url\(|@import|<script", page.replace('xmlns="http://www.w3.org/2000/svg"', ""))
    assert structure.tables
    for tag, given in structure.tables:
        assert tag == "div" and given["class"] == "scroll" and given["tabindex"] == "0" and given["aria-label"]
    charts = re.findall(r"<svg.*?</svg>", page, re.S)
    assert charts and all(re.search(r"<title>[^<]+</title>\n<desc>[^<]+</desc>", chart) for chart in charts)
    assert all('role="img"' in chart and "aria-label" in chart for chart in charts)
    assert structure.headings[0] == "h1" and structure.headings.count("h1") == 1


def test_a_report_that_is_there_tells_the_verdict_at_once(pages: dict[str, str]) -> None:
    assert (
        "Does re-ranking by this reward help?" in pages["report"] and "has not been asked here" not in pages["report"]
    )


def test_the_report_holds_what_the_run_measured(pages: dict[str, str], finished: Path) -> None:
    paired = json.loads((finished / "report" / "paired" / "paired.json").read_text(encoding="utf-8"))
    for row in paired["against"]:
        mean, low, high = (100 * row["metrics"]["hr@10"][field] for field in ("mean", "low", "high"))
        assert f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" in pages["report"]


MEASURE = """
const frame = document.querySelector("iframe"), errors = [];
window.onerror = (message) => errors.push(String(message));
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const look = () => getComputedStyle(page.body).backgroundColor;
  const closed = root.scrollWidth;
  const colours = ["light", "dark"].map((name) => { root.style.colorScheme = name; return look(); });
  const chart = getComputedStyle(page.querySelector("svg path")).fill;
  page.querySelectorAll("details").forEach((one) => { one.open = true; });
  const sizes = [...page.querySelectorAll("figure svg")].map((svg) => svg.getBoundingClientRect().width / 460 * 13);
  const scrolled = [...page.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth).length;
  document.getElementById("result").textContent = JSON.stringify({
    closed, opened: root.scrollWidth, colours, chart, smallest: Math.min(...sizes), scrolled, errors });
};
frame.srcdoc = document.getElementById("page").value;
"""


def measured(page: str, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """What a browser says of a page in a frame of 400 pixels, and what it wrote into its log."""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><iframe style="width:400px;height:800px;border:0"></iframe>'
        f'<pre id="result"></pre><textarea id="page">{html.escape(page)}</textarea><script>{MEASURE}</script>',
        encoding="utf-8",
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert found is not None, done.stderr
    return json.loads(html.unescape(found[1])), done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_phone_nothing_but_tables_scrolls_sideways(pages: dict[str, str], name: str, tmp_path: Path) -> None:
    result, log = measured(pages[name], tmp_path)
    assert result["closed"] == result["opened"] == 400  # open or closed, the page is as wide as the screen
    assert result["scrolled"] > 0  # wide tables have a scroller of their own
    assert result["smallest"] >= 10  # pixels of the text in charts
    assert result["errors"] == [] and "CONSOLE" not in log
    light, dark = result["colours"]
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(22, 25, 29)") and result["chart"] == light
