"""Signals while C code runs: held back where their exception would be lost, or passed on so that the code ends soon."""

import _signal  # type: ignore[import-not-found]  # CPython's own part of `signal`
import contextlib
import ctypes
import os
import signal
import socket
import threading
from collections.abc import Iterator
from functools import cache

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_NUMBERS = tuple(int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name))
STOP_FLAG = ctypes.create_string_buffer(2)
"""An empty C string; it has a character while a signal waits for the end of a `stop_flag_set` block."""


@contextlib.contextmanager
def signals_later() -> Iterator[list[int]]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the end of the block. Their handlers run there.

    Yields the list of those that came; a callback in the block can read it.

    Python loses an exception that a callback from C raises: llama.cpp's log callback, or one around a fork. A signal
    mask does not help: another thread then takes the signal, and Python still runs the handler in the main thread.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread runs handlers
        yield noted
        return
    before = {}
    # `signal` would convert each handler to an enum and back: 40 µs, where a small model writes a token in 400.
    for number in _NUMBERS:
        if callable(handler := _signal.getsignal(number)):
            before[number] = handler
            _signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        for number, handler in before.items():
            _signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])


@contextlib.contextmanager
def stop_flag_set() -> Iterator[None]:
    """`signals_later`, and inside the `with` such a signal sets STOP_FLAG, so that C code can read it and return early.

    Outside the main thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with signals_later():
        STOP_FLAG[0] = b"\0"
        before = signal.set_wakeup_fd(_watcher(os.getpid()), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            STOP_FLAG[0] = b"\0"


@cache
def _watcher(process: int) -> int:
    """The socket to which Python writes the numbers of signals in this process; a thread sets the flag from them."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def watch() -> None:
        while received := ours.recv(64):
            if any(number in received for number in _NUMBERS):
                STOP_FLAG[0] = b"\1"

    threading.Thread(target=watch, name="edge-signals", daemon=True).start()
    return theirs.detach()
