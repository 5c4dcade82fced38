"""The keyboard of a conversation: Ctrl-C ends an answer, typed text is not shown in it, lines can be edited."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stoppable(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C is only noted in this block; yields the function that says whether it was pressed."""
    pressed: list[int] = []
    if not wanted or not callable(signal.getsignal(signal.SIGINT)):  # it is ignored
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        with _without_echo():
            yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """Do not show what the person types now: it would be in the middle of the answer. It stays for the next line."""
    if sys.platform == "win32":
        yield
        return
    import termios

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def line_editing() -> Callable[[str], None]:
    """Turn on line editing and the history, where Python has readline; the function that remembers an entry."""
    from edge.chat.history import History

    if sys.platform == "win32":  # the console has its own
        return lambda entry: None
    try:
        import readline
    except ImportError:  # a Python that was built without it
        return lambda entry: None
    history = History()
    if "libedit" not in (readline.__doc__ or ""):  # pasted lines are one message; Python turns that off
        readline.parse_and_bind("set enable-bracketed-paste on")
    readline.set_auto_history(False)
    readline.clear_history()

    def offer(entry: str) -> None:
        with contextlib.suppress(UnicodeEncodeError):  # characters that the locale does not have
            readline.add_history(entry)

    for entry in history.entries:
        offer(entry)

    def remember(entry: str) -> None:
        if entry.strip():
            offer(entry)
        history.add(entry)

    return remember
