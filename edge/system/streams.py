r"""Standard streams in any encoding: what they cannot encode is written as an escape such as \u00e9.

In JSON, such a character is always inside a string, where the escape has the same meaning.
"""

import codecs
import contextlib
import io
import sys
from collections.abc import Callable
from typing import TextIO

_ESCAPED = "edge-json-escape"
_ASCII = "edge_ascii"


def tolerant_streams() -> None:
    """Let stdout and stderr write every character in their encoding, and stdin read every byte. For a program."""
    codecs.register_error(_ESCAPED, _escaped)
    codecs.register(_ascii_codec)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # click replaces a stream whose encoding has the name "ascii" by one in UTF-8.
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if ascii_only else None, errors=_ESCAPED)
    if isinstance(sys.stdin, io.TextIOWrapper):
        ascii_only = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if ascii_only else None, errors="backslashreplace")


def terminal_settings() -> Callable[[], None]:
    """A function that gives the terminal on stdin its settings of now; it does nothing for another stream."""
    if sys.platform == "win32":
        return lambda: None
    import termios

    try:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (AttributeError, OSError, ValueError, termios.error):  # closed, or no terminal
        return lambda: None

    def restore() -> None:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(terminal, termios.TCSANOW, before)

    return restore


def unencodable(text: str, stream: TextIO | None) -> int:
    """The number of characters of a text that a stream writes as an escape; 0 if the stream is closed (None)."""
    if stream is None:
        return 0
    encoding = "ascii" if stream.encoding == _ASCII else stream.encoding
    return sum(not char.encode(encoding, "ignore") for char in text if not char.isascii())


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""The characters as JSON escapes; those above U+FFFF as two halves."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    codes = (int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2))
    return "".join(f"\\u{code:04x}" for code in codes), error.end


class _Encoder(codecs.IncrementalEncoder):
    def encode(self, text: str, final: bool = False) -> bytes:
        return codecs.ascii_encode(text, self.errors)[0]


def _ascii_codec(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    known = codecs.lookup("ascii")
    return codecs.CodecInfo(
        known.encode,
        known.decode,
        incrementalencoder=_Encoder,
        incrementaldecoder=known.incrementaldecoder,
        name=name,
    )
