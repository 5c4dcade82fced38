"""Who receives llama.cpp's log. It imports nothing of llama.cpp, so that a command can ask for the log early."""

from collections.abc import Callable

_listeners: list[Callable[[str], None]] = []


def listen(listener: Callable[[str], None]) -> None:
    """Send what llama.cpp logs from now on to `listener`, in parts of lines, without the lines for debugging."""
    _listeners[:] = [listener]


def pass_on(text: str) -> None:
    """Send a part of the log to the listener, if there is one."""
    for listener in _listeners:
        listener(text)
