"""The journal of an evaluation: whatever happens to the process or the file, whole steps stay and none is made up.

pytest tests/replay/test_journal.py
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ResultError
from edge.replay.journal import Journal, journal_path
from edge.replay.result import step_result
from edge.replay.rows import Row, read_rows, rows_sha256

RUN = {"edge": "0.1.0", "max_tokens": 128, "sampling": {"temperature": 0.0, "seed": None}, "model": "ab" * 32}


def step(number: int, **fields: Any) -> dict[str, Any]:
    row = Row("tâche", 0, number, None, "s", "g", [], "{}")
    return {**step_result(row, f"{{{number}}}\n"), **fields}


STEPS = [step(number) for number in range(4)]


def write(path: Path, steps: list[dict[str, Any]]) -> bytes:
    """A journal with these steps, and its bytes."""
    path.unlink(missing_ok=True)
    with Journal.open(path, RUN) as journal:
        for one in steps:
            journal.append(one)
    return path.read_bytes() if steps else b""


def read(path: Path) -> list[dict[str, Any]]:
    with Journal.open(path, RUN) as journal:
        return list(journal.done.values())


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """In memory, where there is such a place: a disk takes milliseconds to be sure of what it holds."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder) / "result.json.journal"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "result.json.journal"


def test_it_lies_beside_the_file_that_will_be_written(tmp_path: Path) -> None:
    assert journal_path(tmp_path / "result.json") == tmp_path / "result.json.journal"
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/r.json")
    assert journal_path(tmp_path / "link") == tmp_path / "there" / "r.json.journal"
    os.mkfifo(tmp_path / "fifo")
    for through in (tmp_path / "fifo", "/dev/null", "/dev/stdout", "/dev/fd/1"):
        assert journal_path(through) is None


def test_without_a_place_the_steps_are_in_memory_alone() -> None:
    with Journal.open(None, RUN) as journal:
        journal.append(STEPS[1])
        assert journal.done == {("tâche", 0, 1): STEPS[1]}
        journal.remove()


texts = st.text(st.characters(exclude_categories=()))  # half surrogate pairs too
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.dictionaries(texts.map("further {}".format), values, max_size=4), min_size=1, max_size=4))
def test_steps_come_back_as_they_were(place: Path, fields: list[dict[str, Any]]) -> None:
    steps = [{**field, **STEPS[number]} for number, field in enumerate(fields)]
    write(place, steps)
    assert repr(read(place)) == repr(steps)  # NaN is no NaN's equal


def test_two_halves_side_by_side_stay_two(path: Path) -> None:
    """The scorer makes such texts of escapes in broken JSON."""
    halves = step(0, pred_command_units=["\ud83d\ude00", "\U0001f600"])
    write(path, [halves])
    assert read(path) == [halves] and len(read(path)[0]["pred_command_units"][0]) == 2


def test_each_line_is_json_and_ends_at_once(path: Path) -> None:
    data = write(path, [step(0, pred_text="a\r\nb\x85c\u2028d")])
    first, second = data.decode().removesuffix("\n").split("\n")
    assert json.loads(first)["run"] == RUN
    assert json.loads(second)["step"] == step(0, pred_text="a\r\nb\x85c\u2028d")


@pytest.mark.slow
def test_after_a_cut_at_any_byte_the_whole_lines_are_there(place: Path) -> None:
    data = write(place, STEPS)
    for cut in range(len(data)):
        place.write_bytes(data[:cut])
        whole = STEPS[: max(0, data[:cut].count(b"\n") - 1)]
        with Journal.open(place, RUN) as journal:
            assert list(journal.done.values()) == whole
            for one in STEPS[len(whole) :]:
                journal.append(one)
        assert place.read_bytes() == data


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_wrong_byte_never_changes_a_step(place: Path, draw: st.DataObject) -> None:
    data = write(place, STEPS)
    at = draw.draw(st.integers(0, len(data) - 1))
    wrong = draw.draw(st.integers(0, 255).filter(lambda byte: byte != data[at]))
    place.write_bytes(data[:at] + bytes([wrong]) + data[at + 1 :])
    line = data[:at].count(b"\n")
    # a lost line end spoils the line after it too
    spoilt = line + 1 if data[at : at + 1] == b"\n" else line
    if spoilt < len(STEPS):
        with pytest.raises(ResultError, match=rf"journal(:{line + 1}: is damaged|: is not a journal)"):
            read(place)
        assert place.stat().st_size == len(data)
    else:
        # what is at the very end may have been torn; two bad lines there, if the byte became a line end
        if wrong == ord("\n") and line == len(STEPS):
            assert len(STEPS) - 1 <= len(read(place))
        assert read(place) == STEPS[: line - 1]


def test_a_damaged_line_can_be_taken_out(path: Path) -> None:
    lines = write(path, STEPS).splitlines(keepends=True)
    lines[2] = lines[2].replace(b"{1}", b"{9}")
    path.write_bytes(b"".join(lines))
    with pytest.raises(ResultError, match=r"journal:3: is damaged; delete that line .* or the file"):
        read(path)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    assert read(path) == [STEPS[0], STEPS[2], STEPS[3]]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({**RUN, "max_tokens": 64}, "(--max-tokens was 128, is 64)"),
        (
            {**RUN, "sampling": {"temperature": 0.5, "seed": 3}},
            "(sampling.temperature was 0.0, is 0.5; sampling.seed was unset, is 3)",
        ),
        ({**RUN, "model": "cd" * 32}, "(model has changed)"),
        ({**RUN, "style": "two\nlines"}, '(--style was unset, is "two\\nlines")'),
        (
            {"edge": "0.1.0"},
            "(--max-tokens was 128, is unset; sampling.temperature was 0.0, is unset; model is left out",
        ),
        (dict.fromkeys("abcdef", 1), "d was unset, is 1; 6 more differ)"),
    ],
)
def test_steps_of_another_run_are_refused_in_one_line(path: Path, now: dict[str, Any], words: str) -> None:
    data = write(path, STEPS)
    with pytest.raises(ResultError) as error:
        Journal.open(path, now)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: holds 4 steps of another evaluation (")
    assert path.read_bytes() == data
    assert read(path) == STEPS


def test_equal_values_are_the_same_run(path: Path) -> None:
    with Journal.open(path, {"temperature": 0.0, "layers": [1, 2]}) as journal:
        journal.append(STEPS[0])
    with Journal.open(path, {"layers": (1, 2), "temperature": 0}) as journal:
        assert len(journal.done) == 1


def test_nothing_is_left_of_a_run_without_a_step(path: Path) -> None:
    Journal.open(path, RUN).close()
    assert not path.exists()
    head = write(path, STEPS).splitlines(keepends=True)[0]
    path.write_bytes(head)  # killed before the first step
    with Journal.open(path, {"max_tokens": 1}) as journal:  # nothing is lost that other arguments could spoil
        journal.append(STEPS[0])
    with pytest.raises(ResultError, match="holds 1 step of another"):
        Journal.open(path, RUN)


def test_remove(path: Path) -> None:
    with Journal.open(path, RUN) as journal:
        journal.append(STEPS[0])
        journal.remove()
        assert not path.exists()
        journal.remove()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"my notes\n", b'{"crc": 1}\n', b'{"per_step": []}', b"\0" * 50, b"["])
def test_a_file_of_others_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ResultError, match="is not a journal of edge eval; move it away"):
        Journal.open(path, RUN)
    assert path.read_bytes() == content


def test_a_place_that_cannot_hold_a_journal(tmp_path: Path) -> None:
    (tmp_path / "folder.journal").mkdir()
    os.mkfifo(tmp_path / "fifo.journal")
    for name in ("folder", "fifo"):  # a FIFO would wait for a writer for ever
        with pytest.raises(ResultError, match=f"{name}.journal: is not a regular file"):
            Journal.open(tmp_path / f"{name}.journal", RUN)
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "r.journal", tmp_path / ("n" * 300), Path("/proc/r.journal")):
        with pytest.raises(ResultError, match="cannot be written: "):
            Journal.open(path, RUN)
    with Journal.open(tmp_path / "new" / "folders" / "r.journal", RUN) as journal:
        journal.append(STEPS[0])
    assert read(tmp_path / "new" / "folders" / "r.journal") == STEPS[:1]


def test_a_line_made_by_hand_is_no_crash(path: Path) -> None:
    from zlib import crc32

    data = write(path, STEPS)
    for value in (
        b"{}",
        b"[1]",
        b"null",
        b'{"task_id":3,"step_idx":0}',
        b'{"task_id":"t","step_idx":0,"pred_text":"without its scores"}',
        b"[" * 100_000,
        b"{\xff}",
        b"nonsense",
    ):
        line = b'{"crc32":"%08x","step":%b}\n' % (crc32(value), value)
        path.write_bytes(data + line)
        assert read(path) == STEPS
        path.write_bytes(data + line + data.splitlines(keepends=True)[-1])
        with pytest.raises(ResultError, match=":6: is damaged"):
            read(path)


def test_a_full_disk_is_one_line_and_costs_no_step(path: Path) -> None:
    """The limit on a file's size stops a write in its middle, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = len(write(path, STEPS[:2]))
    with Journal.open(path, RUN) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, limits[1]))
        try:
            with pytest.raises(ResultError, match=r"cannot be written: .*; make room .* keeps 2 steps"):
                journal.append(STEPS[2])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.stat().st_size == size and len(journal.done) == 2
        journal.append(STEPS[2])
    assert read(path) == STEPS[:3]
    path.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
    try:
        with pytest.raises(ResultError, match="cannot be written"):
            Journal.open(path, RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()


APPENDS = """
import itertools, sys
from pathlib import Path
from edge.replay.journal import Journal
from edge.replay.result import step_result
from edge.replay.rows import Row
with Journal.open(Path(sys.argv[1]), {}) as journal:
    for number in itertools.count(len(journal.done)):
        journal.append(step_result(Row("t", 0, number, None, "s", "g", [], "{}"), "x" * number))
        print(number, flush=True)
"""


def test_kill_9_while_it_writes(path: Path) -> None:
    """What was acknowledged is there, and the lock ends with the process."""
    acknowledged = -1
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", APPENDS, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(200):
                acknowledged = int(process.stdout.readline())
            with pytest.raises(ResultError, match="another edge eval is writing it"):
                Journal.open(path, {})
            process.kill()
            acknowledged = int((process.stdout.read().split() or [acknowledged])[-1])
        with Journal.open(path, {}) as journal:
            numbers = [key[2] for key in journal.done]
            assert numbers == list(range(len(numbers))) and len(numbers) > acknowledged >= 199
            assert all(one["pred_text"] == "x" * one["step_idx"] for one in journal.done.values())


def test_one_process_at_a_time(path: Path) -> None:
    with Journal.open(path, RUN) as journal:
        journal.append(STEPS[0])
        with pytest.raises(
            ResultError, match="another edge eval is writing it; let it finish, or choose another"
        ):
            Journal.open(path, RUN)
        journal.append(STEPS[1])
    assert read(path) == STEPS[:2]


TAKES_TURNS = """
import sys
from pathlib import Path
from edge.errors import ResultError
from edge.replay.journal import Journal
path, turns = Path(sys.argv[1]), 0
while turns < 300:
    try:
        journal = Journal.open(path, {})
    except ResultError as error:
        assert "another edge eval" in str(error), error
        continue
    assert path.exists(), "a journal that nobody will find"
    journal.remove()
    turns += 1
"""


@pytest.mark.slow
def test_a_journal_that_its_owner_deletes_is_not_gone_on_with(path: Path) -> None:
    """Several processes in turn: who comes to hold a file that was deleted meanwhile opens a new one."""
    processes = [subprocess.Popen([sys.executable, "-c", TAKES_TURNS, str(path)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert not path.exists()


def test_rows_are_known_by_what_is_read_of_them(tmp_path: Path) -> None:
    fields = [
        {"task_id": "t", "step_idx": n, "messages": [{"role": "user", "content": f"é {n}"}], "ref_raw": "{}"}
        for n in range(3)
    ]

    def digest(*rows: dict[str, Any], **style: Any) -> str:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row, **style) + "\n" for row in rows), encoding="utf-8")
        return rows_sha256(read_rows(file))

    known = digest(*fields)
    assert len(known) == 64
    assert digest(*(dict(reversed(row.items())) for row in fields), ensure_ascii=False) == known
    others = [
        digest(*fields[:2]),
        digest(*fields[::-1]),
        digest({**fields[0], "ref_raw": "{ }"}, *fields[1:]),
        digest({**fields[0], "messages": [{"role": "user", "content": "é  0"}]}, *fields[1:]),
        digest({**fields[0], "task_id": "u"}, *fields[1:]),
    ]
    assert len({known, *others}) == 6
