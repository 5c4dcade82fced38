"""A report of seven files has at most eight pages in print; no line breaks a name that fits on a phone.

pytest tests/report/test_print.py
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from small_results import result

from edge.report.build import report

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which prints the page")
def test_a_page_of_seven_files_prints_on_eight_sheets(tmp_path: Path) -> None:
    out = tmp_path / "page.pdf"
    subprocess.run(
        [
            str(CHROMIUM),
            *("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--no-pdf-header-footer", f"--print-to-pdf={out}"),
            (ROOT / "benchmarks" / "evidence" / "tiny" / "report.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    pages = len(re.findall(rb"/Type\s*/Page\b(?!s)", out.read_bytes()))
    assert 3 <= pages <= 8


_MEASURE = """
<iframe id=phone style="border:0;width:390px;height:3000px"></iframe><pre id=found></pre>
<script>
const frame = document.getElementById("phone");
frame.onload = () => {
  const page = frame.contentDocument;
  const lines = one => [...one.getClientRects()].filter(part => part.width).length;
  const names = [...page.querySelectorAll(".whole")].map(one => [one.textContent, lines(one)]);
  const found = {names: names, width: page.documentElement.scrollWidth};
  document.getElementById("found").textContent = JSON.stringify(found);
};
frame.srcdoc = PAGE;
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which lays the page out")
def test_no_line_breaks_a_name_that_fits_on_a_phone(tmp_path: Path) -> None:
    short, long = "WWWW-model-with-the-Q8_0-type", "a-model-of-2026-06-with-a-name-that-is-too-long-Q4_K_M"
    paths = [result(tmp_path / "a-reference-bf16.json", "bf16")]
    for name, quant in ((short, "Q8_0"), (long, "Q4_K_M")):
        paths.append(result(tmp_path / f"{name}.json", quant))
    page, outer = tmp_path / "page.html", tmp_path / "outer.html"
    report(paths, page, paths[0])
    told = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    outer.write_text(_MEASURE.replace("PAGE", told), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--window-size=800,3000", "--virtual-time-budget=3000", "--dump-dom", outer.as_uri()),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout)
    assert match is not None
    found = json.loads(html.unescape(match[1]))
    lines = {
        name: max(count for other, count in found["names"] if other == name) for name, _ in found["names"]
    }
    assert lines["a-reference-bf16"] == lines[short] == 1 and lines[long] > 1
    assert found["width"] <= 390
