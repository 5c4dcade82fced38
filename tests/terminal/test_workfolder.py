"""The work folder: what edge packs and brings back, what it withholds, and hostile archives.

.venv/bin/pytest tests/terminal/test_workfolder.py
"""

import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edge.agent.listing import shown_changes
from edge.errors import SandboxError
from edge.terminal.archive import HEAD
from edge.terminal.packed import copy_archive, pack, read_base
from edge.terminal.workfolder import Changes, compare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar")]
MOST = 10 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git" / "hooks").mkdir(parents=True)
    (folder / "a").write_text("a\n")
    (folder / "run").write_text("#!/bin/sh\n")
    (folder / "run").chmod(0o755)
    (folder / "sub" / "b").write_text("b\n")
    (folder / ".env").write_text("KEY=1\n")
    (folder / "link").symlink_to("sub/b")
    return folder


@pytest.mark.parametrize(
    "limit", [600, 6000], ids=["while the body is written", "while the archive is written"]
)
def test_a_full_disk_names_the_folder_of_the_archive(folder: Path, tmp_path: Path, limit: int) -> None:
    """As if the disk of the session record were full. The work folder's own disk has room."""
    (to := tmp_path / "records").mkdir()
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom edge.errors import SandboxError\n"
        "from edge.terminal.packed import pack\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try: pack(Path(sys.argv[1]), Path(sys.argv[2]), 1 << 20)\nexcept SandboxError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(folder), str(to / "in.tar")]
    done = subprocess.run(command, capture_output=True, text=True)
    said = f"{folder}: cannot be packed for the sandbox: {to}: File too large\n"
    assert done.stdout == said, done.stderr


class Inside:
    """Stands for a sandbox: unpacks a work folder with the same tar, changes it, and sends it."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place, self.packed = folder, place / "inside", place / "saved.tar"
        pack(folder, place / "in.tar", MOST)
        self.base = read_base(place / "in.tar")
        self.place.mkdir()
        subprocess.run(["tar", "-xf", place / "in.tar", "-C", self.place, "./"], check=True)

    def save(self, most: int = MOST) -> None:
        command = [
            "tar",
            "-c",
            "--format=gnu",
            "-b",
            "1",
            "--hard-dereference",
            "-C",
            self.place,
            "-f",
            "-",
            ".",
        ]
        self.receive(subprocess.run(command, check=True, capture_output=True).stdout, most)

    def receive(self, data: bytes, most: int = MOST) -> None:
        with self.packed.open("wb") as file:
            copy_archive(io.BytesIO(data).read, self.base, file, most)

    def bring_back(self, **options: object) -> Changes:
        return compare(self.folder, self.packed, **options).apply()  # type: ignore[arg-type]


@pytest.fixture
def inside(folder: Path, tmp_path: Path) -> Inside:
    return Inside(folder, tmp_path)


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in sorted(folder.rglob("*"))
    }


def test_nothing_changes_unless_something_did(inside: Inside, folder: Path) -> None:
    before = contents(folder)
    inside.save()
    assert inside.bring_back() == Changes([], [], [], [])
    assert contents(folder) == before


def test_new_changed_and_deleted(inside: Inside, folder: Path) -> None:
    (inside.place / "new").mkdir()
    (inside.place / "new" / ("n" * 200)).write_text("n\n")  # longer than a header's field
    (inside.place / "new" / "ö\udcff").write_bytes(b"\0")  # not UTF-8
    (inside.place / "a").write_text("other\n")
    (inside.place / "run").chmod(0o644)
    (inside.place / "tool").write_text("#!/bin/sh\n")
    (inside.place / "tool").chmod(0o4755)
    shutil.rmtree(inside.place / "sub")
    (inside.place / "link").unlink()
    (inside.place / "link").symlink_to("a")
    inside.save()
    (folder / "a").chmod(0o640)
    changes = inside.bring_back()
    assert sorted(changes.new) == ["new", "new/" + "n" * 200, "new/ö\udcff", "tool"]
    assert sorted(changes.changed) == ["a", "link", "run"]
    assert sorted(changes.deleted) == ["sub", "sub/b"] and changes.withheld == []
    assert (folder / "a").read_text() == "other\n" and (folder / "a").stat().st_mode & 0o777 == 0o640
    assert not (folder / "sub").exists() and os.readlink(folder / "link") == "a"
    assert (folder / "tool").stat().st_mode & 0o7111 == 0o111  # executable, not setuid
    assert not (folder / "run").stat().st_mode & 0o111
    assert compare(folder, inside.packed).changes == Changes([], [], [], [])  # once more: nothing to do


def test_what_was_withheld_is_kept_and_may_come_later(inside: Inside, folder: Path) -> None:
    """Also if the sandbox has changed the files again since edge brought them back."""
    (inside.place / "a").write_text("other\n")
    (inside.place / "new").write_text("1\n")
    (inside.place / "run").unlink()
    (inside.place / ".env").write_text("KEY=2\n")
    inside.save()
    comparison = compare(folder, inside.packed)
    done = comparison.apply()
    assert [path for path, _ in done.withheld] == [".env"]
    comparison.keep_rest(done)
    assert inside.packed.stat().st_mode & 0o777 == 0o600
    again = compare(folder, inside.packed, dot_files=True).changes
    assert again == Changes([], [".env"], [], [])
    inside.base = read_base(inside.packed)
    (inside.place / "new").write_text("2\n")
    inside.save()
    assert inside.bring_back(dot_files=True) == Changes([], [".env", "new"], [], [])
    assert (folder / "new").read_text() == "2\n" and (folder / ".env").read_text() == "KEY=2\n"
    assert (folder / "a").read_text() == "other\n" and not (folder / "run").exists()


def test_names_that_programs_act_on_are_withheld(inside: Inside, folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    (folder / "allow.toml").write_text("[[allow]]\n")
    (inside.place / "allow.toml").write_text("all\n")
    (inside.place / ".env").write_text("KEY=2\n")
    (inside.place / ".git" / "hooks" / "post-checkout").write_text("evil\n")
    (inside.place / "sub" / ".bashrc").write_text("evil\n")
    (inside.place / "AGENTS.md").write_text("obey\n")
    (inside.place / "--checkpoint-action=exec=sh x").write_text("")
    (inside.place / "~").mkdir()  # whoever removes it by its name removes the home folder
    (inside.place / "~" / "x").write_text("")
    (inside.place / "sub" / "~root").write_text("")
    (inside.place / "a\x1b]0;x\x07\nb").write_text("")
    inside.save()
    changes = inside.bring_back(protected=[folder / "allow.toml"])
    assert not changes
    assert {path for path, _ in changes.withheld} == {
        *(".env", ".git", "sub/.bashrc", "AGENTS.md", "--checkpoint-action=exec=sh x", "a\x1b]0;x\x07\nb"),
        *("allow.toml", "~", "sub/~root"),
    }
    shown = shown_changes(compare(folder, inside.packed)).plain
    assert "\x1b" not in shown and "a\\x1b]0;x\\x07\\nb" in shown
    assert contents(folder) == before | {"allow.toml": b"[[allow]]\n"}
    changes = inside.bring_back(protected=[folder / "allow.toml"], dot_files=True)
    assert sorted(changes.new) == [".git/hooks/post-checkout", "AGENTS.md", "sub/.bashrc"]
    assert (folder / ".env").read_text() == "KEY=2\n" and (folder / "allow.toml").read_text() == "[[allow]]\n"


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "..",
        "../canary",
        "sub/../../canary",
        "sub/b/../../..",
        "link/../../x",
        "./../canary",
        ".git/x",
    ],
)
def test_links_that_leave(target: str, inside: Inside, folder: Path) -> None:
    (inside.place / "l").symlink_to(target)
    (inside.place / "sub" / "up").symlink_to("../a")  # one that does not
    inside.save()
    changes = inside.bring_back()
    assert changes.new == ["sub/up"] and [path for path, _ in changes.withheld] == ["l"]
    assert not (folder / "l").is_symlink()


def test_a_link_in_the_persons_folder_is_not_followed(inside: Inside, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "canary").write_text("whole\n")
    (inside.place / "sub" / "c").write_text("c\n")
    (inside.place / "sub" / "b").write_text("changed\n")
    (inside.place / "a").write_text("changed\n")
    inside.save()
    shutil.rmtree(folder / "sub")
    (folder / "sub").symlink_to(tmp_path / "away")  # after the session began
    (folder / "a").unlink()
    (folder / "a").symlink_to(tmp_path / "canary")
    changes = inside.bring_back()
    assert not changes and {path for path, _ in changes.withheld} == {"a", "sub/b", "sub/c"}
    assert not list((tmp_path / "away").iterdir()) and (tmp_path / "canary").read_text() == "whole\n"


def test_a_link_that_appears_while_it_is_brought_back(inside: Inside, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (inside.place / "sub" / "c").write_text("c\n")
    inside.save()
    comparison = compare(folder, inside.packed)
    assert comparison.changes.new == ["sub/c"]
    shutil.rmtree(folder / "sub")
    (folder / "sub").symlink_to(tmp_path / "away")
    assert [path for path, _ in comparison.apply().withheld] == ["sub/c"]
    assert not list((tmp_path / "away").iterdir())


def test_files_that_the_user_changed_stay(inside: Inside, folder: Path) -> None:
    (inside.place / "a").write_text("the agent's\n")
    (inside.place / "run").unlink()
    (inside.place / "same").write_text("both\n")
    (inside.place / "made").write_text("the agent's\n")
    inside.save()
    for name, text in (("a", "mine\n"), ("run", "mine\n"), ("same", "both\n"), ("made", "mine\n")):
        (folder / name).write_text(text)
    before = contents(folder)
    changes = inside.bring_back()
    assert not changes and {path for path, _ in changes.withheld} == {"a", "run", "made"}
    assert contents(folder) == before


def test_a_folder_in_place_of_a_file_and_the_other_way_round(inside: Inside, folder: Path) -> None:
    before = contents(folder)
    (inside.place / "a").unlink()
    (inside.place / "a").mkdir()
    (inside.place / "a" / "x").write_text("x\n")
    shutil.rmtree(inside.place / "sub")
    (inside.place / "sub").write_text("no folder\n")
    inside.save()
    changes = inside.bring_back()
    assert changes.deleted == ["sub/b"] and {path for path, _ in changes.withheld} == {"a", "a/x", "sub"}
    assert contents(folder) == {name: value for name, value in before.items() if name != "sub/b"}


def test_what_is_left_out_is_neither_overwritten_nor_deleted(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "fifo")
    left_out = pack(folder, tmp_path / "x.tar", MOST)
    assert left_out == ("fifo",)
    inside = Inside(folder, tmp_path)
    (inside.place / "fifo").write_text("a file\n")
    inside.save()
    assert [path for path, _ in inside.bring_back().withheld] == ["fifo"]
    assert (folder / "fifo").is_fifo()


def test_too_large(folder: Path, tmp_path: Path) -> None:
    (folder / "large").write_bytes(bytes(MOST))
    with pytest.raises(SandboxError, match="choose a smaller --workdir"):
        pack(folder, tmp_path / "x.tar", MOST)


def hostile(*members: tuple[str, dict[str, object]], end: bool = True) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, options in [(".", {"type": tarfile.DIRTYPE}), *members]:
            info = tarfile.TarInfo(name)
            content = b"evil" if not options else b""
            info.size = len(content)
            for key, value in options.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
        size = data.tell()
    return data.getvalue() if end else data.getvalue()[:size]


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", {})],
        [("/tmp/evil", {})],
        [("./../evil", {})],
        [("./sub/../../evil", {})],
        [("./a//b", {})],
        [("evil", {})],
        [(HEAD, {})],
        [("./sub/evil", {})],
        [("./l", {"type": tarfile.SYMTYPE, "linkname": ".."}), ("./l/evil", {})],
        [("./x", {}), ("./x", {})],
        [("./x", {"type": b"S"})],
        [("./x", {"type": b"x"})],
        [("./" + "x/" * 3000, {"type": tarfile.DIRTYPE})],
    ],
    ids=str,
)
def test_hostile_archives(members: list[tuple[str, dict[str, object]]], inside: Inside, folder: Path) -> None:
    before = contents(folder.parent)
    with pytest.raises(SandboxError, match="the archive of the work folder is damaged"):
        inside.receive(hostile(*members))
    inside.packed.unlink()
    assert contents(folder.parent) == before


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_hard_links_and_devices_are_withheld(kind: bytes, inside: Inside, folder: Path) -> None:
    inside.receive(hostile(("./x", {"type": kind, "linkname": "/etc/passwd"})))
    changes = inside.bring_back()
    assert "x" in {path for path, _ in changes.withheld} and not (folder / "x").exists()


def test_a_truncated_archive_deletes_nothing(inside: Inside, folder: Path) -> None:
    """Cuts the archive at each block: an incomplete archive is an error."""
    inside.save()
    whole = hostile(("./a", {}), ("./b", {"type": tarfile.DIRTYPE}), ("./b/c", {}))
    end = len(hostile(("./a", {}), ("./b", {"type": tarfile.DIRTYPE}), ("./b/c", {}), end=False))
    for size in range(0, end + 512, 256):
        with pytest.raises(SandboxError, match=r"truncated|it is empty|its end"):
            inside.receive(whole[:size])
    inside.receive(whole)


def test_random_damage(inside: Inside, folder: Path) -> None:
    """The result is an error or an archive within its limit, and nothing changes outside the folder."""
    whole = hostile(("./a", {}), ("./b", {"type": tarfile.DIRTYPE}), ("./b/" + "c" * 150, {}))
    around = sorted(os.listdir(folder.parent))
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            inside.receive(bytes(data))
            inside.bring_back()
        except SandboxError:
            refused += 1
    assert refused > 0
    assert sorted({*os.listdir(folder.parent)} - {"saved.tar"}) == around


def test_more_than_the_limit(inside: Inside) -> None:
    with pytest.raises(SandboxError, match="larger than its limit"):
        info = tarfile.TarInfo("./x")
        info.size = 1 << 40
        inside.receive(hostile()[:512] + info.tobuf(tarfile.GNU_FORMAT))
    (inside.place / "big").write_bytes(bytes(1 << 20))
    with pytest.raises(SandboxError, match="larger than its limit"):
        inside.save(most=1 << 19)
