"""Reads what the sandbox answers. None of it is trusted. Linux only."""

import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class Silent(Exception):
    """The sandbox does not answer as it must; the message says how."""


@dataclass
class Channel:
    """The answers of the sandbox, from a non-blocking descriptor, until `end` (by time.monotonic())."""

    descriptor: int
    end: float
    trouble: Callable[[], str | None]
    """Why the sandbox has ended, or None; asked while there is nothing to read."""
    _buffer: bytearray = field(default_factory=bytearray)

    def read(self, count: int) -> bytes:
        """From one to `count` bytes. Raises Silent."""
        if not self._buffer:
            self._fill()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def line(self, end: bytes = b"\n") -> bytes:
        """The next line without its end. Raises Silent."""
        while (place := self._buffer.find(end)) < 0:
            if len(self._buffer) > 1 << 16:
                raise Silent("its answer is too long")
            self._fill()
        line = bytes(self._buffer[:place])
        del self._buffer[: place + 1]
        return line

    def skip_to(self, mark: bytes, most: int) -> None:
        """Skip to the end of the next `mark`: what comes before it answers an earlier request.

        Raises Silent if there is no mark in `most` bytes.
        """
        while (place := self._buffer.find(mark)) < 0:
            most -= len(self._buffer)
            if most < 0:
                raise Silent("it answers something else")
            del self._buffer[: -len(mark)]
            self._fill()
        del self._buffer[: place + len(mark)]

    def _fill(self) -> None:
        if sys.platform == "win32":
            raise Silent("Windows has no poll()")
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        while True:
            if time.monotonic() > self.end:
                raise Silent("it does not answer in time")
            for _, event in poll.poll(100):
                if event & select.POLLIN and (data := os.read(self.descriptor, 1 << 20)):
                    self._buffer += data
                    return
                if event & select.POLLHUP:
                    raise Silent("it has ended")
            if trouble := self.trouble():
                raise Silent(f"it has ended: {trouble}")


def readable(descriptor: int, seconds: float = 0) -> bool:
    """Whether a read of an open file would not wait, or not longer than `seconds`."""
    return bool(select.select([descriptor], [], [], seconds)[0])
