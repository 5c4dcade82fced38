"""A report of seven files has at most eight pages in print.

pytest tests/report/test_print.py
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

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
