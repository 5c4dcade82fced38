"""Files around a run that must not change any of them: a planted tree, the home, /tmp, edge's own folders."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def planted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Plant files in `folder`, in a home with edge's folders, and in /tmp. The value: all of these, and edge itself."""
    tree = folder / "planted"
    for name in ("file", "sub/file", ".hidden", "sub/deep/er"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("keep\n")
    home = folder / "home"
    shutil.copytree(tree, home)
    shutil.copytree(tree, home / "state")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("EDGE_STATE", str(home / "state"))
    with tempfile.TemporaryDirectory(prefix="edge-planted-", dir="/tmp") as place:
        shutil.copytree(tree, Path(place) / "tree")
        yield [tree, home, Path(place), Path(__file__).resolve().parents[2] / "edge"]


def state_of(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a folder: its mode, its time and its content, without Python's caches."""
    return {
        str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
