"""Patterns inside of JSON strings: a text is possible if, and only if, the pattern of the client holds for it.

.venv/bin/pytest tests/answer/test_json_pattern.py
"""

import json
import random
import re

import pytest

from edge.answer.guided import compile_guide
from edge.errors import GrammarError
from edge.llama.vocabulary import Vocabulary

TEXTS = [
    '"',
    "\\",
    "\n",
    "\t",
    "\x01",
    "\x0b",
    "\x1f",
    "a",
    "Z",
    "5",
    "/",
    "~",
    "&",
    "-",
    ":",
    "[",
    "ä",
    "😀",
    " ",
]
CLASSES = [
    r'[^"]',
    r"[^\\]",
    r'[^"\\]',
    r"[^\"'<>]",
    r"[^a-z\"]",
    r"[^\\/:*?\"<>|]",
    r"[\x00-\x1f]",
    r"[\x00-!#-~]",
    r"[^\n\"]",
    r"[^\w\"]",
    r"[^\s\"]",
    r"[\s\S]",
    r"[^~~\"]",
    r"[a&&[^b\"]",
    r"(?:[\x00-\x0f]|[\x10-\x1f])",
    r"(?:[\x00-\x1f]|a|Z)",
    r'(?:[^"]|a)',
    r"(?![\"a])[^Z]",
    r'(?i:[^"])',
    r"\P{L}",
    r"[^\p{L}\"]",
]


def takes(vocabulary: Vocabulary, schema: object, texts: list[str]) -> list[bool]:
    matcher = compile_guide(vocabulary, "schema", json.dumps(schema)).matcher
    found = []
    for text in texts:
        tokens = vocabulary.matcher_tokens().tokenize_str(json.dumps(text, ensure_ascii=False))
        one = matcher.deep_copy()
        found.append(bool(one.try_consume_tokens(tokens) == len(tokens) and one.is_accepting()))
    return found


def holds(pattern: str, text: str) -> bool:
    """With Python's engine, whose `$` also matches before a last newline, and which has no `\\p`."""
    letters = "a-zA-Zä"
    read = pattern.replace(r"[^\p{L}", f"[^{letters}").replace(r"\P{L}", f"[^{letters}]")
    return re.search(read.removesuffix("$") + r"\Z", text, re.ASCII) is not None


@pytest.mark.parametrize("characters", CLASSES)
@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
def test_a_class_has_its_own_escapes(vocabulary: Vocabulary, characters: str) -> None:
    for pattern in (f"^{characters}$", f"^x{characters}+$"):
        before = "x" if "x" in pattern[:2] else ""
        texts = [before + text for text in TEXTS]
        for text, taken in zip(
            texts, takes(vocabulary, {"type": "string", "pattern": pattern}, texts), strict=True
        ):
            narrower = (
                not text.isascii() or "\x1f" in text
            )  # letters and spaces are what all engines take for them
            assert taken == holds(pattern, text) or (narrower and not taken), text


@pytest.mark.slow
def test_300_random_classes(vocabulary: Vocabulary) -> None:
    source = random.Random(17)
    members = [*r'"\/[]^-~&'.replace("\\", "")]
    written = [re.escape(one) for one in members] + [
        r"\\",
        r"\n",
        r"\x00-\x1f",
        r"\x0b",
        "a-z",
        r"\d",
        r"\S",
        r"\W",
    ]
    texts = [text for text in TEXTS if text not in ("ä", "😀", "\x1f")]  # \S and \W differ there
    for _ in range(300):
        chosen = "".join(source.sample(written, source.randint(1, 5)))
        pattern = f"^[{source.choice(('', '^'))}{chosen}]$"
        if source.random() < 0.3:
            pattern = f"^(?:{pattern[1:-1]}|[{source.choice(written)}])$"
        schema = {"type": "string", "pattern": pattern}
        try:
            found = takes(vocabulary, schema, texts)
        except GrammarError:
            assert not any(holds(pattern, text) for text in texts), pattern  # an empty class
            continue
        assert found == [holds(pattern, text) for text in texts], pattern


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\W$",
        r"^\D$",
        r"^\S$",
        r"^[^\w]$",
        r"^[^\w\s\"]$",
        r"^[^\d-]$",
        r"^[\Wa]$",
        r"^[\s\S]$",
        r"^[\w\W]$",
        r"^[^\W]$",
        r"^(?=.*\W)\S$",
        r"^(?![\s\S]{2})[\w\W]$",
        r"^(?!\W)[^\s]$",
    ],
)
def test_a_text_is_one_to_javascript_and_to_python(vocabulary: Vocabulary, pattern: str) -> None:
    """They differ in what a letter, a digit and a space are: so a text must be none, or one, to both."""
    texts = [*TEXTS, "é", "鶇", "٣", "½", "\x85", "\ufeff", "—", "\x1c"]
    found = takes(vocabulary, {"type": "string", "pattern": pattern}, texts)
    for text, taken in zip(texts, found, strict=True):
        ways = [re.search(pattern.removesuffix("$") + r"\Z", text, flag) for flag in (re.ASCII, re.UNICODE)]
        assert not taken or all(ways), text
        assert taken or not all(ways) or not text.isascii() or not text.isprintable(), text
    assert any(found)


def test_names_under_a_pattern(vocabulary: Vocabulary) -> None:
    names = {
        "type": "object",
        "patternProperties": {'^[^"]$': {"type": "null"}},
        "additionalProperties": False,
    }
    matcher = compile_guide(vocabulary, "schema", json.dumps(names)).matcher
    tokens = vocabulary.matcher_tokens().tokenize_str('{"\\"":null}')
    assert matcher.validate_tokens(tokens) < len(tokens)


@pytest.mark.parametrize(
    "pattern",
    ["^[[:alpha:]]+$", "^[+--a]$", r'^(?:[^"]|\x00)$', r"^\P{Po}$", r"^\p{Cc}$", r"^[\x00-\x1f\p{L}]$"],
)
def test_others_are_refused_by_name(vocabulary: Vocabulary, pattern: str) -> None:
    with pytest.raises(GrammarError) as refused:
        compile_guide(vocabulary, "schema", json.dumps({"type": "string", "pattern": pattern}))
    assert repr(pattern) in str(refused.value)
