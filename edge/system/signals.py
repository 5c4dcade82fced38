"""Signals that must not raise where an exception would be lost, or would leave something half made."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def signals_later() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until its end: what they raise is raised there.

    Python loses what is raised in a callback: that by which llama.cpp logs, or those around a fork. A mask would not
    do: another thread takes the signal then, and the handler runs in the main thread all the same.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers run in the main thread alone
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
