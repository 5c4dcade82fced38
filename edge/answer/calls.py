"""Calls of tools in an answer, and the pieces in which an answer is streamed."""

import json
import math
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A complete call. `arguments`: a JSON object as text, valid for the tool's schema. `id`: 9 letters and digits."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Thinking:
    """The next text of the thought."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A call has begun. `index`: 0 for the first call of the answer. The call is certain to be completed."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next text of a call's arguments: the pieces of one call together are the JSON object."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnded:
    """A call is complete."""

    index: int
    call: ToolCall


Piece = str | Thinking | CallBegun | CallArguments | CallEnded
"""What a writer emits while it writes: a text is the next text of the answer. Nothing is ever taken back.

The order is: pieces of the thought, pieces of text, then for each call its beginning, its arguments (none or more) and
its end. No text follows a call.
"""


def read_json(text: str) -> Any:
    """A value that a model wrote. A number beyond all floats, such as 1e999, is the nearest float: there is no JSON for
    infinity. Raises ValueError, RecursionError."""
    return json.loads(text, parse_float=_float)


def _float(text: str) -> float:
    value = float(text)
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value
