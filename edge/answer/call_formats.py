"""The forms in which models write calls of tools: the text of calls, as a chat template writes it.

A form is its texts around name and arguments, and how it writes values. The texts are those of the models' own chat
templates; `tests/answer/test_call_formats.py` compares them.
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

Values = Literal["json", "pythonic", "keywords", "xml", "gemma"]
"""How arguments are written.

- json: `{"a": "x", "b": true}`, as Python's json.dumps without ASCII escapes
- pythonic: `a='x', b=True`; a text is not escaped, an object is JSON, all else is Python
- keywords: `a="x", b=True`; texts are quoted as in JSON
- xml: `<parameter=a>` and the value on its own lines; a text is not escaped
- gemma: `a:<|"|>x<|"|>,b:true`; names in alphabetical order
"""
Style = Literal["json", "repr", "double", "gemma"]
"""How a value inside others is written: JSON, Python's repr, JSON with Python's True, False and None, or Gemma's."""

GEMMA_QUOTE = '<|"|>'
XML_END = "\n</parameter>\n"
ID = "{id}"
"""Stands for a call's id in the texts of a form."""
ID_LENGTH = 9


@dataclass(frozen=True)
class CallFormat:
    """The texts of a form: `before` all calls, then for each `begin` name `middle` arguments `end`, then `after` all.

    `between`: the text between two calls. `trigger`: the beginning of `before` + `begin` that only a call has.
    """

    name: str
    values: Values
    begin: str
    middle: str
    end: str
    trigger: str
    before: str = ""
    between: str = ""
    after: str = ""
    many: bool = True
    """Whether one answer can have several calls."""
    at_start: bool = False
    """The trigger counts only at the beginning of an answer."""

    def opening(self) -> str:
        """What a call begins with, up to its name."""
        return self.before + self.begin

    def call(self, name: str, arguments: dict[str, Any], id_: str = "") -> str:
        """The text of one call, from its name to its end."""
        text = self.middle + write_arguments(arguments, self.values) + self.end
        return name + text.replace(ID, id_) if ID in self.middle + self.end else name + text

    def text(self, calls: list[tuple[str, dict[str, Any]]], ids: list[str] | None = None) -> str:
        """The text of all calls: pairs of name and arguments."""
        ids = ids or [""] * len(calls)
        written = (self.call(name, values, id_) for (name, values), id_ in zip(calls, ids, strict=True))
        return self.opening() + (self.between + self.begin).join(written) + self.after


HERMES = CallFormat(
    "hermes",
    "json",
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    "}\n</tool_call>",
    "<tool_call>",
    between="\n",
)
LFM2 = CallFormat(
    "lfm2",
    "pythonic",
    "",
    "(",
    ")",
    "<|tool_call_start|>",
    "<|tool_call_start|>[",
    ", ",
    "]<|tool_call_end|>",
)
LFM2_KEYWORDS = CallFormat(
    "lfm2-keywords",
    "keywords",
    "",
    "(",
    ")",
    "<|tool_call_start|>",
    "<|tool_call_start|>[",
    ", ",
    "]<|tool_call_end|>",
)
QWEN_XML = CallFormat(
    "qwen-xml",
    "xml",
    "<tool_call>\n<function=",
    ">\n",
    "</function>\n</tool_call>",
    "<tool_call>",
    between="\n",
)
GEMMA = CallFormat("gemma", "gemma", "<|tool_call>call:", "{", "}<tool_call|>", "<|tool_call>")
LLAMA3 = CallFormat(
    "llama3", "json", '{"name": "', '", "parameters": ', "}", '{"name": "', many=False, at_start=True
)
MISTRAL_LIST = CallFormat(
    "mistral-list",
    "json",
    '{"name": "',
    '", "arguments": ',
    ', "id": "{id}"}',
    "[TOOL_CALLS]",
    "[TOOL_CALLS][",
    ", ",
    "]",
)
MISTRAL_ID = CallFormat("mistral-id", "json", "[TOOL_CALLS]", "[CALL_ID]{id}[ARGS]", "", "[TOOL_CALLS]")
MISTRAL = CallFormat("mistral", "json", "[TOOL_CALLS]", "[ARGS]", "", "[TOOL_CALLS]")
HARMONY = CallFormat(
    "harmony",
    "json",
    " to=functions.",
    "<|channel|>commentary json<|message|>",
    "<|call|>",
    " to=functions.",
    many=False,
    at_start=True,
)
HARMONY_CHANNEL = replace(
    HARMONY,
    name="harmony-channel",
    begin="<|channel|>commentary to=functions.",
    middle=" <|constrain|>json<|message|>",
    trigger="<|channel|>commentary",
)
"""As gpt-oss writes its calls itself; its template writes HARMONY for the same calls."""
FORMATS = (HERMES, LFM2, LFM2_KEYWORDS, QWEN_XML, GEMMA, LLAMA3, MISTRAL_LIST, MISTRAL_ID, MISTRAL, HARMONY)


def write_arguments(arguments: dict[str, Any], values: Values) -> str:
    """The text of arguments, between `middle` and `end`."""
    if values == "json":
        return write(arguments, "json")
    if values == "xml":
        return "".join(f"<parameter={name}>\n{plain(value)}{XML_END}" for name, value in arguments.items())
    if values == "gemma":
        return ",".join(
            f"{name}:{write(arguments[name], 'gemma')}" for name in sorted(arguments, key=str.lower)
        )
    style: Style = "double"
    return ", ".join(
        f"{name}={pythonic(value) if values == 'pythonic' else write(value, style)}"
        for name, value in arguments.items()
    )


def plain(value: Any) -> str:
    """A value of the XML form: lists and objects as JSON, all other values as Python writes them."""
    return write(value, "json") if isinstance(value, dict | list) else str(value)


def pythonic(value: Any) -> str:
    """A value of the pythonic form."""
    if isinstance(value, str):
        return f"'{value}'"
    return write(value, "json" if isinstance(value, dict) else "repr")


def write(value: Any, style: Style) -> str:
    """A value inside others."""
    if style == "json":
        return json.dumps(value, ensure_ascii=False)
    if style == "repr":
        return repr(value)
    if style == "gemma":
        return _gemma(value)
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{write(key, style)}: {write(one, style)}" for key, one in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(write(one, style) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _gemma(value: Any) -> str:
    if isinstance(value, str):
        return GEMMA_QUOTE + value + GEMMA_QUOTE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma(value[key])}" for key in sorted(value, key=str.lower)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_gemma, value)) + "]"
    return str(value)
