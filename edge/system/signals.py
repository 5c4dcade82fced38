"""Signals that are held back while their exception would be lost or would leave something half made."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the end of the block. Their handlers run there.

    Python loses an exception that a callback from C raises: llama.cpp's log callback, or one around a fork. A signal
    mask does not help: another thread then takes the signal, and Python still runs the handler in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread runs handlers
        yield
        return
    noted: list[int] = []
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and callable(handler := signal.getsignal(number)):
            before[number] = handler
            signal.signal(number, lambda number, _: noted.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if noted:
            signal.raise_signal(noted[0])
