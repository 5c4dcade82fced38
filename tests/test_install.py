"""docs/install.md and scripts/wheel_check.py: the commands that the page has are the ones that ran.

.venv/bin/pytest tests/test_install.py

`make wheel-check` runs the page with a network, and with more than one Python. The test at the end runs the same script
without a network: this Python, a fresh environment, edge's own wheel, and the dependencies that are installed here.
"""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "wheel_check.py"
PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# A line that installs edge itself, from a clone or a wheel.
INSTALLS = re.compile(r"(pip|pipx|uv tool|uv pip) install\b.*(\s\.(\s|$)|\s'?\.\[|terminal[_-]edge)")
# What only developers run: `make test` does the same steps.
FOR_TESTS = "pip install -e '.[test]'"

sys.path.insert(0, str(SCRIPT.parent))
from wheel_check import CheckError, blocks, find_python, main, sh  # type: ignore[import-not-found] # noqa: E402


def commands(text: str) -> list[str]:
    """The command lines of a block; continued lines are one, comments and double spaces are gone."""
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.split("#")[0].strip()]


def test_every_line_that_installs_edge_is_one_that_the_check_runs() -> None:
    runs = {line for text in blocks(PAGE).values() for line in commands(text)}
    found = []
    for page in PAGES:
        for text in re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            lines = [line for line in commands(text) if INSTALLS.search(line) and line != FOR_TESTS]
            found += [(page.name, line) for line in lines]
    assert len(found) == 3  # a clone, uv, a wheel
    assert [(page, line) for page, line in found if line not in runs] == []
    for old in (
        "pip install -e '.[serve]'",
        "pip install .",
        "uv tool install .",
        "pip install terminal-edge",
    ):
        assert INSTALLS.search(old) and old not in runs  # the search finds them, if they come back


def test_the_lines_build_the_same_llama_cpp_as_make() -> None:
    """The options of the Makefile; the file that they name is there, in the clone and in the wheel."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "LLAMA_CMAKE := -DLLAVA_BUILD=OFF" in makefile and "edge/airgap/llama_build.cmake" in makefile
    for name, folder in {"clone": "$PWD", "uv": "$PWD", "wheel": "$PWD/unpacked"}.items():
        options = (
            f"-DLLAVA_BUILD=OFF '-DCMAKE_PROJECT_llama_cpp_INCLUDE={folder}/edge/airgap/llama_build.cmake'"
        )
        assert f'CMAKE_ARGS="{options}"' in blocks(PAGE)[name]
    assert (ROOT / "edge" / "airgap" / "llama_build.cmake").is_file()


def test_the_page_must_have_each_block_once() -> None:
    uninstall = "<!-- not run: make wheel-check runs it (uninstall) -->"
    for page in (PAGE.replace(uninstall, ""), PAGE.replace("(uninstall)", "(other)"), PAGE + PAGE):
        with pytest.raises(CheckError, match=r"install\.md: must have one block"):
            blocks(page)


def test_a_python_that_is_not_there_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_python("3.99") is None and find_python("/no/python") is None
    here = find_python(sys.executable)
    assert here is not None and Path(here.program) == Path(sys.executable)
    assert main(["3.99"]) == 1
    printed = capsys.readouterr()
    assert re.match(r"Python 3\.99 +not tried: ", printed.out) and "no Python was tried" in printed.err


@pytest.mark.skipif(sys.platform == "win32", reason="needs sh")
def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="exit code 3\nlast words"):
        sh("echo last words\n(exit 3)\necho not reached", tmp_path, {"PATH": "/usr/bin:/bin"}, "it")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs sh")
def test_the_wheel_works_in_a_fresh_environment() -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed (make test installs it)")
    if subprocess.run(["git", "-C", ROOT, "rev-parse"], capture_output=True).returncode:
        pytest.skip("not a git clone")
    packages = ["--packages", sysconfig.get_path("purelib")]
    command = [sys.executable, SCRIPT, sys.executable, "--only", "wheel", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^Python 3\.\d+\.\S+ +wheel +ok: edge \S+ installed in \d+ s", done.stdout, re.M), (
        done.stdout
    )
