"""The progress of long work: a bar on a terminal; elsewhere a replay gives a line every ten seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Literal, Self

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task
from rich.text import Text

_LOG_EVERY = 10.0  # seconds between two lines

Progress = Callable[[int, int], None]
"""Receives how much is done, and of how much."""


@contextlib.contextmanager
def bar(text: str, *, show: bool, unit: Literal["bytes", "tokens"]) -> Iterator[Progress]:
    """A bar with the time left on stderr, if `show` and if that is a terminal."""
    if not (show and sys.stderr.isatty()):
        yield lambda done, total: None
        return
    amount = rich_progress.DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (rich_progress.TextColumn("{task.description}"), BarColumn(), amount)
    with rich_progress.Progress(
        *columns, rich_progress.TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as shown:
        task = shown.add_task(text, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextlib.contextmanager
def waiting(text: str, *, show: bool) -> Iterator[None]:
    """A line with the elapsed seconds on stderr, if `show` and if that is a terminal; removed at the end."""
    if not (show and sys.stderr.isatty()):
        yield
        return
    columns = (rich_progress.TextColumn("{task.description}"), rich_progress.TimeElapsedColumn())
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        shown.add_task(text, total=None)
        yield


class Watch:
    """Counts finished steps and shows the speed. Use it as a context manager.

    `steps`: the number of all steps; `done`: of those finished before. `counters` returns how many prompt tokens and
    answer tokens were decoded so far; the display calls it several times a second, from its own thread. `say` receives
    a line every ten seconds where there is no terminal; None shows nothing.
    """

    def __init__(
        self,
        steps: int,
        done: int,
        counters: Callable[[], tuple[int, int]],
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._steps, self._before, self._done = steps, done, done
        self._counters = counters
        self._prompt_tokens = 0  # of the steps finished now
        self._valid = 0
        self._began = self._logged = time.monotonic()
        self._terminal = sys.stderr.isatty() and say is not None
        self._say = None if self._terminal else say
        self._bar = rich_progress.Progress(
            BarColumn(),
            MofNCompleteColumn(),
            _Figures(self),
            console=Console(stderr=True),
            disable=not self._terminal,
            transient=True,
        )
        self._task = self._bar.add_task("steps", total=steps, completed=done)

    def finished(self, prompt_tokens: int, valid: bool) -> None:
        """One more step is done: its prompt's length, and whether its answer is valid JSON."""
        self._done += 1
        self._prompt_tokens += prompt_tokens
        self._valid += valid
        self._bar.update(self._task, completed=self._done)
        if self._say is not None and time.monotonic() - self._logged >= _LOG_EVERY:
            self._logged = time.monotonic()
            self._say(f"{self._done}/{self._steps} steps, {self}")

    def __str__(self) -> str:
        read, written = self._counters()
        seconds = max(time.monotonic() - self._began, 1e-9)
        now = self._done - self._before
        text = (
            f"{self._valid} of {now} valid, {read / seconds:,.0f} tokens/s in, {written / seconds:,.0f} out"
        )
        if self._prompt_tokens:
            # Prompts read ahead of their answers count as read only.
            text += f", {max(0.0, 1 - read / self._prompt_tokens):.0%} of the prompts reused"
        if now:
            left = timedelta(seconds=round(seconds / now * (self._steps - self._done)))
            text += f", {left} left"
        return text

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class _Figures(ProgressColumn):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def render(self, task: Task) -> Text:
        return Text(str(self._watch))
