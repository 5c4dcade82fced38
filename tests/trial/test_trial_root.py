"""`--root`: tasks in the file system of an image, made here from a few of this system's programs.

.venv/bin/pytest tests/trial/test_trial_root.py
"""

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest
from test_trial_tasks import make_task

from edge.compare.trials import read_trials
from edge.errors import ReplayError
from edge.trial.root import unpacked_root

PROGRAMS = (
    *(
        "awk",
        "base64",
        "bash",
        "cat",
        "chmod",
        "comm",
        "find",
        "head",
        "ls",
        "mkdir",
        "rm",
        "rmdir",
        "sed",
        "sleep",
    ),
    *("readlink", "sort", "stat", "stty", "tar", "timeout", "touch"),
)


def add(
    tar: tarfile.TarFile, name: str, content: bytes = b"", mode: int = 0o644, kind: bytes = tarfile.REGTYPE
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.type = len(content), mode, kind
    tar.addfile(member, io.BytesIO(content))


def link(tar: tarfile.TarFile, name: str, target: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    tar.addfile(member)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system with the programs that a sandbox needs, their libraries, and one program that is only there."""
    if not all(shutil.which(name) for name in (*PROGRAMS, "ldd", "tmux", "bwrap")):
        pytest.skip("needs tmux, bubblewrap, ldd and GNU programs")
    path = tmp_path_factory.mktemp("image") / "root.tar"
    libraries: set[str] = set()
    with tarfile.open(path, "w") as tar:
        for name in PROGRAMS:
            place = str(Path(str(shutil.which(name))).resolve())
            libraries |= set(
                re.findall(
                    r"(/\S+) \(0x", subprocess.run(["ldd", place], capture_output=True, text=True).stdout
                )
            )
            add(tar, f"usr/bin/{name}", Path(place).read_bytes(), 0o4755)
        for library in sorted(libraries):
            add(tar, library, Path(library).resolve().read_bytes(), 0o755)
        add(tar, "usr/bin/only-here", b"#!/bin/bash\necho 42\n", 0o755)
        link(tar, "bin", "usr/bin")
        link(tar, "usr/bin/sh", "bash")
        add(tar, "app/given", b"of the image\n")
        add(tar, "etc/setting", b"of the image\n")
        add(tar, "root/secret", b"x")
        add(tar, "dev/null", kind=tarfile.CHRTYPE)
    return path


@pytest.mark.slow
def test_the_programs_of_a_task_are_those_of_the_root(image: Path, tmp_path: Path) -> None:
    make_task(
        tmp_path / "t",
        {
            "environment/Dockerfile": "FROM mine\nWORKDIR /app\nRUN only-here > made\n",
            "solution/solve.sh": "#!/bin/bash\nonly-here > answer\ncat /etc/setting given made >> answer\n",
            "tests/test.sh": "#!/bin/bash\n[ -e /usr/bin/git ] || [ -e /etc/fonts ] || [ -e /root ] || "
            "[ -u /usr/bin/tar ] || "
            '[ "$(only-here)" != 42 ] || [ "$(cat answer)" != "42\nof the image\nof the image\n42" ]\n'
            "echo $(($? > 0)) > /logs/verifier/reward.txt\n",
        },
    )
    words = ("trial", "t", "--agent", "oracle", "--root", image)
    done = command_line.run(*words, "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read_trials(tmp_path / "o" / "oracle.json")
    assert [(one["state"], one["reason"]) for one in found["trials"]] == [("solved", "")]
    again = command_line.run(*words[:-2], "--out", "o", cwd=tmp_path)
    assert again.returncode == 1 and "(now without root file system)" in again.stderr
    without = command_line.run(*words[:-2], "--out", "p", cwd=tmp_path)
    assert "RUN fails in the sandbox" in without.stderr


UNFIT: dict[str, tuple[Callable[[tarfile.TarFile], object], str]] = {
    "no programs": (lambda tar: add(tar, "etc/x"), "has no awk, base64, bash, "),
    "layers": (lambda tar: add(tar, "manifest.json"), "make its file system with docker export"),
    "a path with ..": (lambda tar: add(tar, "usr/../../x"), "with .."),
    "a path through a link": (
        lambda tar: (link(tar, "out", "/tmp"), add(tar, "out/x", b"x")),
        "goes through a link",
    ),
}


@pytest.mark.parametrize("what", UNFIT)
def test_an_archive_that_is_no_root(what: str, tmp_path: Path) -> None:
    fill, said = UNFIT[what]
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        fill(tar)
    with pytest.raises(ReplayError, match=r"a\.tar\.gz: ") as error, unpacked_root(tmp_path / "a.tar.gz"):
        pass
    assert said in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("text")
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\x00")
    for name, said in (
        ("a.tar", "is not a tar archive"),
        ("cut.tar.gz", "is not"),
        ("none", "is not a file that can be read"),
        (".", "is not a file that can be read"),
    ):
        done = command_line.run("trial", "--agent", "nop", "--root", tmp_path / name, cwd=tmp_path)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
