"""Finished sessions whose work waits to be brought back, and a person who cannot answer."""

import io
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from edge.agent.bring_back import Consent, bring_back, undo
from edge.agent.kept import archive_path
from edge.agent.record import Record
from edge.terminal.packed import copy_archive, pack, read_base
from edge.terminal.sealed import sealed

ACTION: Any = {"analysis": "", "plan": "", "commands": [], "task_complete": False}


def make_session(
    folder: Path, change: Callable[[Path], object], path: Path | None = None, outcome: str = "complete"
) -> Path:
    """A finished session whose work folder `change` has changed, as edge keeps it. Returns its record."""
    path = path or folder.parent / "session.jsonl"
    facts: Any = {"task": "t", "model": "/m.gguf", "workdir": str(folder), "sandbox": True}
    with Record.create(path, facts) as record:
        record.append([{"role": "user", "content": "x"}], json.dumps(ACTION), ACTION, {})
        record.append([{"role": "user", "content": "y"}], json.dumps(ACTION), ACTION, {})
        save(folder, change, record)
        record.finish(outcome, "")
    return path


def save(folder: Path, change: Callable[[Path], object], record: Record) -> None:
    inside = folder.parent / f"inside-{time.monotonic_ns()}"
    inside.mkdir()
    pack(folder, inside / "in.tar", 10 << 20)
    (inside / "app").mkdir()
    subprocess.run(["tar", "-xf", inside / "in.tar", "-C", inside / "app", "./"], check=True)
    change(inside / "app")
    words = ["tar", "-c", "--format=gnu", "-b", "1", "-C", str(inside / "app"), "-f", "-", "."]
    data = subprocess.run(words, check=True, capture_output=True).stdout
    with archive_path(record.path).open("wb") as file, sealed(file, record.key("work folder")) as out:
        copy_archive(io.BytesIO(data).read, read_base(inside / "in.tar"), out, 10 << 20)
    shutil.rmtree(inside)


class Person:
    """What a person saw; nobody can answer."""

    def __init__(self) -> None:
        self.shown, self.said = io.StringIO(), list[str]()
        self.console = Console(file=self.shown, soft_wrap=True)

    def brings_back(self, session: Path, consent: Consent, **options: Any) -> bool:
        options = {"dot_files": False, **options}
        return bring_back(str(session), consent, self.console, self.said.append, **options)

    def undoes(self, session: Path) -> None:
        undo(str(session), Consent(False), self.console, self.said.append)


YES = Consent(person=False, yes=True)
