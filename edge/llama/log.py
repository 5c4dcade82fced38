"""Who receives llama.cpp's log, and its last lines. It does not import llama.cpp, so a command can subscribe early."""

from collections.abc import Callable

_listeners: list[Callable[[str], None]] = []
_mourners: list[Callable[[str], None]] = []


def listen(listener: Callable[[str], None]) -> None:
    """Send what llama.cpp logs from now on to `listener`, in parts of lines, without the lines for debugging."""
    _listeners[:] = [listener]


def pass_on(text: str) -> None:
    """Send a part of the log to the listener, if there is one."""
    for listener in _listeners:
        listener(text)


def at_abort(end: Callable[[str], None]) -> None:
    """Call `end` with one line when llama.cpp is about to stop this process: a device is gone, or a check failed.

    `end` may run in any thread, inside llama.cpp: it must write the line and end the process.
    """
    _mourners[:] = [end]


def aborted(text: str) -> None:
    """Pass llama.cpp's last words on, if somebody asked for them."""
    for end in _mourners:
        end(text)


def reports_aborts() -> bool:
    """Whether somebody asked for llama.cpp's last words."""
    return bool(_mourners)
