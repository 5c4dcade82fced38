"""How many threads compute a batch: fewer while other programs take the cores.

The threads of llama.cpp wait for each other some hundred times a token. If one of them does not get a core, all wait
(benchmarks/busy.py shows how long). A result does not depend on the number of threads, because one thread computes
each number of it.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from edge.llama import library

WINDOW = 0.05
"""Seconds of computing between two decisions."""
BUSY = 0.6
"""Threads that compute for less than this share of the time wait for each other."""
PAUSE = 1.0
"""Seconds before one more thread is tried; each failed try doubles them."""
LONGEST_PAUSE = 30.0
"""After it one more thread is tried although no core seems free."""


def free_cores(own: int = 1) -> int:
    """Cores of this machine that no other program uses at this moment, by Linux's count of what runs.

    `own`: threads of this process that may be among those that run.
    """
    cores = os.cpu_count() or 1
    try:
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        return cores
    return cores - max(0, running - own)


@dataclass
class Pace:
    """The number of threads for one kind of batch, 1 to `most`, and the time that its batches took."""

    most: int
    count: int
    changed: float
    """When the number changed last, in seconds."""
    wall: float = 0.0
    cpu: float = 0.0
    tried: bool = False
    pause: float = PAUSE
    free: Callable[[int], int] = free_cores

    def add(self, wall: float, cpu: float, now: float) -> None:
        """Take a batch: its seconds, the processor seconds of this process in them, and the time at its end."""
        self.wall += wall
        self.cpu += cpu
        if self.wall < WINDOW:
            return
        share = self.cpu / (self.wall * self.count)
        took, self.wall, self.cpu = self.wall, 0.0, 0.0
        if self.count > 1 and share < BUSY:
            # A try may cost at most a twentieth of the time.
            self.pause = min(LONGEST_PAUSE, max(2 * self.pause, 20 * took)) if self.tried else PAUSE
            self.count -= 1 if self.tried else max(1, self.count // 4)
            self.tried, self.changed = False, now
        elif self.tried and now - self.changed > LONGEST_PAUSE:
            self.tried, self.pause = False, PAUSE  # enough cores for a while
        elif self.count < self.most and self._may_try(now):
            self.count += 1
            self.tried, self.changed = True, now

    def _may_try(self, now: float) -> bool:
        since = now - self.changed
        if self.tried:  # the last try did well
            return self.free(self.count) > self.count
        return since > LONGEST_PAUSE or (since > self.pause and self.free(self.count) > self.count)


class Threads:
    """Decodes the batches of one engine, with at most `most` threads. `adapts`: with fewer on a busy machine.

    It adapts only on Linux, and only where the CPU computes: while a GPU computes, the threads wait as well.
    """

    def __init__(self, most: int, *, adapts: bool) -> None:
        self._adapts = adapts and most > 1 and sys.platform == "linux"
        first = max(1, min(most, free_cores())) if self._adapts else most
        begun = time.monotonic() - PAUSE
        self.single, self.several = Pace(most, first, begun), Pace(most, first, begun)
        self._set: tuple[object, int, int] | None = None

    def decode(self, context: Any, batch: Any) -> int:
        """As `edge.llama.library.decode`."""
        if not self._adapts:
            return library.decode(context, batch)
        wanted = context, self.single.count, self.several.count
        if wanted != self._set:
            llama_cpp.llama_set_n_threads(*wanted)
            self._set = wanted
        # llama.cpp has one number for batches of one token, and one for all others.
        pace = self.single if batch.n_tokens == 1 else self.several
        cpu, start = time.process_time(), time.monotonic()
        status = library.decode(context, batch)
        now = time.monotonic()
        pace.add(now - start, time.process_time() - cpu, now)
        return status
