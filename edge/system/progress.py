"""The progress of long work: a bar on a terminal; elsewhere a line every ten seconds."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Literal, Self

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from edge.system.text import counted, size

_LOG_EVERY = 10.0  # seconds between two lines
_BAR, _NARROW_BAR = 40, 10  # columns
_BARE = 60  # columns of a terminal that has room for a bar beside its text
_WIDE = 110  # columns of a terminal that has room for the bar of 40
_RIGHT_MARGIN = 2

Progress = Callable[[int, int], None]
"""Receives how much is done, and of how much."""
Say = Callable[[str], None] | None
"""Receives a line where no bar can be drawn; None shows nothing."""


def draws() -> bool:
    """Whether stderr is a terminal on which a line can be drawn again."""
    return (
        sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    )


@contextlib.contextmanager
def bar(text: str, say: Say, *, unit: Literal["bytes", "tokens"], limit: bool = False) -> Iterator[Progress]:
    """A bar with the time left on stderr; where that is not a terminal, `say` receives a line every ten seconds.

    `limit`: the total is an upper limit that the work may not reach, so there is no bar, and the time is "at most".
    """
    if say is None:
        yield lambda done, total: None
        return
    if not draws():
        yield _lines(text, say, unit, limit)
        return
    console = Console(stderr=True, emoji=False)
    if limit:
        columns: list[ProgressColumn] = [_Limited(unit)]
    else:
        amount = rich_progress.DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        drawn = [_bar_for(console)] if console.width >= _BARE else []
        columns = [*drawn, amount, rich_progress.TimeRemainingColumn()]
    with _display(console, *_texts(), *columns) as shown:
        task = shown.add_task(text, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextlib.contextmanager
def waiting(text: str, say: Say) -> Iterator[None]:
    """A line with the elapsed time on stderr, removed at the end; where that is not a terminal, see `bar`."""
    if say is None:
        yield
    elif draws():
        console = Console(stderr=True, emoji=False)
        with _display(console, *_texts(), rich_progress.TimeElapsedColumn()) as shown:
            shown.add_task(text, total=None)
            yield
    else:
        began = time.monotonic()
        with _logging(say, lambda: f"{text}, {time.monotonic() - began:.0f} s"):
            yield


@contextlib.contextmanager
def _logging(say: Callable[[str], None], line: Callable[[], str]) -> Iterator[None]:
    """Sends a line every ten seconds, from its own thread."""
    ended = threading.Event()

    def log() -> None:
        while not ended.wait(_LOG_EVERY):
            say(line())

    thread = threading.Thread(target=log, name="edge-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _lines(text: str, say: Callable[[str], None], unit: str, limit: bool) -> Progress:
    """Sends a line every ten seconds."""
    began = logged = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal logged
        now = time.monotonic()
        if now - logged >= _LOG_EVERY:
            logged = now
            say(f"{text}: {_amount(done, total, unit, now - began, limit)}")

    return progress


def _amount(done: int, total: int, unit: str, seconds: float, limit: bool) -> str:
    """What is done, and the time left if the work goes on at the same speed."""
    most = "at most " if limit else ""
    amount = (
        f"{size(done)} of {most}{size(total)}" if unit == "bytes" else f"{done:,} of {most}{total:,} {unit}"
    )
    left = timedelta(seconds=round(seconds / max(done, 1) * max(total - done, 0)))
    return f"{amount}, {most}{left} left"


def _display(console: Console, *columns: ProgressColumn, disable: bool = False) -> rich_progress.Progress:
    return rich_progress.Progress(*columns, console=console, transient=True, disable=disable)


def _texts() -> tuple[ProgressColumn]:
    return (rich_progress.TextColumn("{task.description}", table_column=Column(no_wrap=True)),)


def _bar_for(console: Console) -> BarColumn:
    return BarColumn(bar_width=_BAR if console.width >= _WIDE else _NARROW_BAR)


class Watch:
    """Counts finished steps and shows the speed. Use it as a context manager.

    `steps`: the number of all steps; `done`: of those finished before. `counters` returns how many prompt tokens and
    answer tokens were decoded so far; the display calls it from its own thread. `say` receives a line every ten seconds
    where there is no terminal; None shows nothing.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        counters: Callable[[], tuple[int, int]],
        say: Say = None,
    ) -> None:
        self._steps, self._before, self._done = steps, done, done
        self._counters = counters
        self._prompt_tokens = 0  # of the steps finished now
        self._valid = 0
        self._began = time.monotonic()
        drawn = say is not None and draws()
        self._say = None if drawn else say
        console = Console(stderr=True, emoji=False)
        self._bar = _display(
            console,
            _bar_for(console),
            MofNCompleteColumn(),
            _Figures(self, console),
            disable=not drawn,
        )
        self._shown = contextlib.ExitStack()
        self._task = self._bar.add_task("steps", total=steps, completed=done)

    def finished(self, prompt_tokens: int, valid: bool) -> None:
        """One more step is done: its prompt's length, and whether its answer is valid JSON."""
        self._done += 1
        self._prompt_tokens += prompt_tokens
        self._valid += valid
        self._bar.update(self._task, completed=self._done)

    def figures(self) -> list[str]:
        """What the display shows beside the bar, the most important first."""
        read, written = self._counters()
        seconds = max(time.monotonic() - self._began, 1e-9)
        now = self._done - self._before
        found = []
        if now:
            left = timedelta(seconds=round(seconds / now * (self._steps - self._done)))
            found = [f"{left} left", f"{self._valid} of {now} valid{' now' if self._before else ''}"]
        found += [f"{read / seconds:,.0f} tokens/s in", f"{written / seconds:,.0f} out"]
        if self._prompt_tokens:
            # Prompts read ahead of their answers count as read only.
            found.append(f"{max(0.0, 1 - read / self._prompt_tokens):.0%} of the prompts reused")
        return found

    def __enter__(self) -> Self:
        if self._say is not None:
            self._shown.enter_context(_logging(self._say, self._line))
        else:
            self._shown.enter_context(self._bar)
        return self

    def _line(self) -> str:
        return f"{self._done}/{counted(self._steps, 'step')}, {', '.join(self.figures())}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.close()


class _Limited(ProgressColumn):
    """The amount and the time of work whose total is an upper limit."""

    max_refresh = 0.5

    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self._unit = unit

    def render(self, task: Task) -> Text:
        done, total = int(task.completed), task.total
        if not done or total is None:
            return Text("")
        return Text(_amount(done, int(total), self._unit, task.elapsed or 0.0, limit=True))


class _Figures(ProgressColumn):
    """As many of the figures as fit into the line."""

    max_refresh = 0.5

    def __init__(self, watch: Watch, console: Console) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self._watch, self._console = watch, console

    def render(self, task: Task) -> Text:
        steps = len(str(int(task.total or 0)))
        bar_width = _BAR if self._console.width >= _WIDE else _NARROW_BAR
        room = self._console.width - bar_width - 2 * steps - 1 - _RIGHT_MARGIN - 2
        figures = self._watch.figures()
        while len(figures) > 1 and len(", ".join(figures)) > room:
            figures.pop()
        return Text(", ".join(figures))
