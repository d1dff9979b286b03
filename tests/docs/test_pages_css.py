"""What the style of the site does to tables and headings, in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STYLE = Path(__file__).parents[2] / "docs" / "_static" / "pages.css"
PROSE = "words that are many enough to want all of the room that there is, and then some more of it, " * 3
PAGE = f"""<!DOCTYPE html><meta charset="utf-8"><style>
body {{ width: WIDTHpx; margin: 0; font: 16px/1.5 sans-serif }} .table-wrapper {{ overflow-x: auto }}
code {{ font: 13px monospace }} td {{ padding: 4px 8px }} STYLE</style>
<h1>A line that is<a class="headerlink">¶</a></h1>
<div class="table-wrapper"><table class="docutils">
<tr><td><code class="literal">--interactions</code></td><td>{PROSE}</td>
<td><code class="literal">127.0.0.1</code></td></tr>
</table><table class="docutils">
<tr><td>{PROSE}</td><td class="text-right">19.18 %</td><td>{PROSE}</td>
<td class="text-right">.0027</td><td>{PROSE}</td></tr>
</table></div><pre id="result"></pre><script>
const heading = document.querySelector("h1"), range = document.createRange(), lines = (node) => {{
  range.selectNodeContents(node); return new Set([...range.getClientRects()].map((box) => box.top)).size }};
heading.style.display = "inline-block";
const wide = heading.querySelector("a").previousSibling; range.selectNode(wide);
heading.style.width = Math.ceil(range.getBoundingClientRect().width) + "px";
document.getElementById("result").textContent = JSON.stringify({{
  short: [...document.querySelectorAll("code, .text-right")].map(lines), heading: heading.offsetHeight,
  page: document.documentElement.scrollWidth }});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_short_cells_and_headings_stay_on_their_line(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGE.replace("WIDTH", "736").replace("STYLE", STYLE.read_text(encoding="utf-8")), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=800,600", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r'<pre id="result">(.+?)</pre>', done.stdout, re.S)
    assert found is not None, done.stderr
    result = json.loads(html.unescape(found[1]))
    assert result["short"] == [1, 1, 1, 1]
    assert result["heading"] < 2 * 32 * 1.5  # one line of an h1
    assert result["page"] <= 800
