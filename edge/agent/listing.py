"""What a session changed, as a person reads it before it comes back: the list, and the diff of the files."""

import difflib
import re
from collections.abc import Iterator, Sequence

from rich.text import Text

from edge.system.text import counted, escapes, printable
from edge.terminal.obeyed import acted_on
from edge.terminal.workfolder import Comparison

_MOST = 100  # lines of each kind of change; marked ones are never left out
_FEW = 20  # additions that are shown one by one
_GROUPS = 40
_DEPTH = 6
_NAMED = 10
_BYTES = 400_000  # of a file that is compared line by line
_LINES = 2_000  # that differ: the time to compare them grows with their square
_FILES = 100  # in the diff of all files
_CONTEXT = 3
_SHOWN = 200  # lines of one file in the diff of all files
_LOOK = "bold red"


def shown_name(path: str) -> str:
    """A path with an escape for each character, and each blank at an end of a name, that cannot be seen."""
    return re.sub(r" +(?=/|$)|(?:^|(?<=/)) +", lambda blanks: r"\x20" * len(blanks[0]), printable(path))


def shown_changes(comparison: Comparison, *, whole: bool = False) -> Text:
    """The list of changes: first what is withheld, deleted and changed, then what is new, unmarked files by folder.

    Each kind has its own room, so that many changes of one kind hide none of another. Files on which programs and
    agents act, executable files and links are marked, and come first of their kind. `whole`: leave nothing out.
    """
    changes = comparison.changes
    text = Text()
    withheld = [f"  ! {shown_name(path)}: not brought back: {why}" for path, why in changes.withheld]
    _add(text, withheld, whole)
    marked: list[str] = []
    for sign, paths in (("-", changes.deleted), ("~", changes.changed), ("+", changes.new)):
        marks = {path: why for path in paths if (why := mark_of(comparison, path))}
        for path in sorted(marks, key=lambda path: (path.count("/"), path)):
            text.append(f"  {sign} {shown_name(path)}").append(f"   {marks[path]}\n", _LOOK)
        marked += marks
        plain = [path for path in paths if path not in marks]
        grouped = sign == "+" and len(plain) > _FEW and not whole
        _add(
            text,
            [f"  {sign} {line}" for line in (_by_folder(plain) if grouped else map(shown_name, plain))],
            whole,
        )
    if not text:
        return Text("The work folder is unchanged.")
    text.append(_summary(comparison, marked))
    return Text("Changes in the work folder:\n").append_text(text)


def mark_of(comparison: Comparison, path: str) -> str:
    """Why a changed path deserves a look, in a few words; empty if nothing is known."""
    before, after = comparison.before(path), comparison.after(path)
    words = [acted_on(path) or ""]
    if after is not None and after.kind == "link":
        words.append(f"link to {shown_name(after.content)}")
    if after is not None and after.kind == "file" and after.executable:
        new = before is None or before.kind != "file" or not before.executable
        words.append("becomes executable" if new and before is not None else "executable")
    return ", ".join(word for word in words if word) if after is None or after.kind != "folder" else ""


def shown_diff(comparison: Comparison, name: str = "") -> Text:
    """What changes in the files, line by line: marked files first; of `name`, a file or a folder, without a limit."""
    changes = comparison.changes
    paths = [*changes.deleted, *changes.changed, *changes.new]
    chosen = [path for path in paths if not name or path == name or path.startswith(name.rstrip("/") + "/")]
    if name and name in {path for path, _ in changes.withheld}:
        chosen.append(name)
    if not chosen:
        return Text(f"{printable(name)}: nothing changed there" if name else "Nothing changed.")
    chosen.sort(key=lambda path: not mark_of(comparison, path))
    left_out = [] if name else chosen[_FILES:]
    chosen = chosen[: len(chosen) - len(left_out)]
    found = {
        path: list(_file_diff(path, old, new)) for path, old, new in comparison.contents(chosen, _BYTES + 1)
    }
    text = Text()
    for path in chosen:
        lines = found[path]
        most = len(lines) if name else _SHOWN
        for line in lines[:most]:
            text.append(line + "\n", _style(line))
        if len(lines) > most:
            text.append(f"… {len(lines) - most:,} more lines: d {shown_name(path)}\n")
    if left_out:
        text.append(f"… {counted(len(left_out), 'more path')}: d NAME shows one\n")
    return text if text else Text("No file changed, only folders or links.")


def _file_diff(path: str, old: bytes, new: bytes) -> Iterator[str]:
    if old == new:
        return
    before, after = _lines(old), _lines(new)
    if before is None or after is None:
        sizes = [f"{len(data):,} bytes" if len(data) <= _BYTES else "large" for data in (old, new)]
        yield f"{shown_name(path)}: not text, or too long to compare ({sizes[0]} → {sizes[1]})"
        return
    begin, end = _same_ends(before, after)
    begin, end = max(begin - _CONTEXT, 0), max(end - _CONTEXT, 0)
    before, after = before[begin : len(before) - end], after[begin : len(after) - end]
    if max(len(before), len(after)) > _LINES:
        yield f"{shown_name(path)}: more than {_LINES:,} lines differ"
        return
    name = shown_name(path)
    for line in difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", lineterm="", n=_CONTEXT):
        if line.startswith("@@"):  # the numbers count from the first line of the file
            line = re.sub(r"([-+])(\d+)", lambda found: f"{found[1]}{int(found[2]) + begin}", line)
        yield "".join(
            char if char == "\t" else shown for char, shown in zip(line, escapes(line), strict=True)
        )


def _same_ends(before: Sequence[str], after: Sequence[str]) -> tuple[int, int]:
    """How many lines are the same at the beginning, and how many of the others at the end."""
    most = min(len(before), len(after))
    begin = next((i for i in range(most) if before[i] != after[i]), most)
    end = next((i for i in range(most - begin) if before[-1 - i] != after[-1 - i]), most - begin)
    return begin, end


def _lines(data: bytes) -> list[str] | None:
    """The lines of a text; None if it is not UTF-8 text, or too long."""
    if len(data) > _BYTES or b"\0" in data:
        return None
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError:
        return None
    if lines[-1] == "":
        lines.pop()
    elif data:
        lines.append("\\ No line break at the end of the file")
    return lines


def _style(line: str) -> str | None:
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])


def _add(text: Text, lines: Sequence[str], whole: bool) -> None:
    shown = lines if whole or len(lines) <= _MOST else lines[:_MOST]
    for line in shown:
        text.append(line + "\n")
    if len(shown) < len(lines):
        text.append(f"  … {len(lines) - len(shown):,} more like these (l shows all)\n")


def _by_folder(paths: Sequence[str]) -> list[str]:
    """The paths by the folders that they are in: as deep as few lines allow."""
    for depth in range(_DEPTH, 0, -1):
        groups: dict[str, list[str]] = {}
        for path in paths:
            parts = path.split("/")
            groups.setdefault("/".join(parts[: min(depth, len(parts) - 1)]), []).append(path)
        if len(groups) <= _GROUPS:
            break
    lines: list[str] = []
    for folder, inner in groups.items():
        if len(inner) == 1 or (not folder and len(inner) <= _FEW):
            lines += map(shown_name, inner)
        else:
            lines.append(
                f"{shown_name(folder) + '/' if folder else './'} ({counted(len(inner), 'new path')})"
            )
    return lines


def _summary(comparison: Comparison, marked: Sequence[str]) -> str:
    changes = comparison.changes
    counts = (
        (changes.changed, "changed"),
        (changes.deleted, "deleted"),
        (changes.new, "new"),
        (changes.withheld, "not brought back"),
    )
    line = ", ".join(f"{len(paths):,} {word}" for paths, word in counts if paths) + "."
    if marked:
        names = [
            shown_name(path) for path in sorted(marked, key=lambda path: (path.count("/"), path))[:_NAMED]
        ]
        line += f" Look at: {', '.join(names)}{' …' if len(marked) > _NAMED else ''}"
    return line
