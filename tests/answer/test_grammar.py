"""edge/grammar.gbnf: what it accepts and refuses, in llguidance and in llama.cpp.

Run: python -m pytest tests/answer/test_grammar.py
"""

import random
import re

import pytest
from actions import compact, matches, references, sample_texts, write
from llama_grammar import LlamaGrammar

from edge.answer.action import ActionScanner
from edge.answer.style import load_grammar
from edge.errors import GrammarError


def scanner_matches(text: bytes) -> bool:
    scanner = ActionScanner()
    try:
        scanner.feed(text)
    except GrammarError:
        return False
    return scanner.complete


def with_duration(duration: str) -> str:
    command = f'{{"keystrokes":"ls\\n","duration":{duration}}}'
    return f'{{"analysis":"a","plan":"p","commands":[{command}],"task_complete":false}}'


def with_string(inside: str) -> str:
    return f'{{"analysis":"{inside}","plan":"p","commands":[],"task_complete":false}}'


good_durations = "0 7 10 59 60 0.0 0.5 1.0 59.999999 60.0 60.000000 9.000001"
bad_durations = "00 007 01 60.1 60.0000001 60.0000000 61 100 600 -1 -0 +1 1. .5 1e1 1E1 null true"
TAKEN = [
    *(with_duration(d) for d in good_durations.split()),
    *(
        with_string(s)
        for s in ("", "é한😀", "\x7f", "\u0085", "\ud7ff\ue000\ufffe\uffff\U00010000\U0010ffff")
    ),
    *(
        with_string(s)
        for s in (r"\"\\\/\b\f\n\r\t", r"\u0000\u001f\uABCD\uabcd", r"\uD83D\uDE00", r"\ud7ff\ue000")
    ),
    *(with_string(s) for s in (r"\udbff\udfff\ud800\udc00", "// # {}[]", r"\\ud83d", "\u2028")),
    *(
        f'{{{" " * n}"analysis":"","plan":"",\n"commands":[{chr(9) * n}],"task_complete":true}}'
        for n in (1, 13, 20)
    ),
    ' \n{"analysis" : "" , "plan" : "" , "commands" : [ ] , "task_complete" : true }',
]
REFUSED = [
    *(with_duration(d) for d in bad_durations.split()),
    *(with_duration(d) for d in ("", "1 0", "[1]", "NaN", "0x1", "0.1234567", "1,5", "٣", '"1"')),
    *(
        with_string(s)
        for s in ('"', "\\", "\n", "\t", "\r", "\x00", "\x1f", r"\x41", r"\a", r"\'", r"\u12", r"\uGGGG")
    ),
    *(
        with_string(s)
        for s in (r"\ud83d", r"\ude00", r"\ud83d\n", r"\ud83dx", r"\ud83d\u0041", r"\ud83d\ud83d")
    ),
    *(with_string(s) for s in (r"\uDE00\uD83D", r"\udbff\ue000", r"\U0001F600", r"\ud83d\ude0")),
    '{%s"analysis":"","plan":"","commands":[],"task_complete":true}' % (" " * 21),
    *(with_string("a") + s for s in (" ", "\n", ",", "}", with_string("b"), "x")),
    *(s + with_string("a") for s in ("x", "```json\n", "<think>\n</think>", "\ufeff", "\r\n", "[", "\xa0")),
    "",
    "{}",
    "[]",
    "null",
    '{"analysis":"","plan":"","commands":[]}',
    '{"analysis":"","plan":"","commands":[],"task_complete":false',
    '{"plan":"","analysis":"","commands":[],"task_complete":false}',
    '{"analysis":"","commands":[],"plan":"","task_complete":false}',
    '{"analysis":"","analysis":"","plan":"","commands":[],"task_complete":false}',
    '{"analysis":"","plan":"","commands":[],"task_complete":false,}',
    '{"analysis":"","plan":"","commands":[],"task_complete":"false"}',
    '{"analysis":"","plan":"","commands":[],"task_complete":False}',
    '{"analysis":"","plan":"","commands":[],"task_complete":0}',
    '{"analysis":"","plan":"","commands":[],"done":false}',
    '{"Analysis":"","plan":"","commands":[],"task_complete":false}',
    '{"an\\u0061lysis":"","plan":"","commands":[],"task_complete":false}',
    "{'analysis':'','plan':'','commands':[],'task_complete':false}",
    '{"analysis":null,"plan":"","commands":[],"task_complete":false}',
    '{"analysis":"","plan":["p"],"commands":[],"task_complete":false}',
    '{"analysis":"","plan":"","commands":{},"task_complete":false}',
    '{"analysis":"","plan":"","commands":null,"task_complete":false}',
    '{"analysis":"","plan":"","commands":["ls\\n"],"task_complete":false}',
    '{"analysis":"","plan":"","commands":[{}],"task_complete":false}',
    '{"analysis":"","plan":"","commands":[,],"task_complete":false}',
    with_duration("1}, {"),
    with_duration('1,"x":1'),
    with_duration("1").replace("}]", "},]"),
    with_duration("1").replace("}]", "}{]"),
    with_duration("1").replace(',"duration":1', ""),
    with_duration("1").replace('"keystrokes":"ls\\n",', ""),
    with_duration("1").replace('"keystrokes":"ls\\n","duration":1', '"duration":1,"keystrokes":"ls\\n"'),
]


@pytest.mark.parametrize("text", TAKEN)
def test_takes(text: str) -> None:
    assert matches(text.encode())


@pytest.mark.parametrize("text", REFUSED)
def test_refuses(text: str) -> None:
    assert not matches(text.encode())


def test_takes_every_sample_and_every_real_answer() -> None:
    assert all(matches(text) for text in sample_texts())
    refused = [i for i, text in enumerate(references()) if not matches(text.encode())]
    assert not refused, f"recorded answers {refused} do not fit the grammar"


def mutations(text: str, rng: random.Random) -> str:
    """One small change: a character removed, doubled, inserted, or swapped with another one."""
    at, other = rng.randrange(len(text)), rng.randrange(len(text))
    match rng.randrange(5):
        case 0:
            return text[:at] + text[at + 1 :]
        case 1:
            return text[:at] + text[at] + text[at:]
        case 2:
            return text[:at] + rng.choice('"\\{}[]:, \n\t\r0169.-eu/\x00é😀') + text[at:]
        case 3:
            return text[:at] + text[other] + text[at + 1 :]
        case _:
            return text[:at]


@pytest.mark.slow
def test_llguidance_llama_cpp_and_the_scanner_agree() -> None:
    """On hand-written texts, all samples, small changes of samples, and real answers if there are any."""
    rng = random.Random(2)
    samples = [text.decode() for text in sample_texts()]
    texts = [*TAKEN, *REFUSED, *samples, *(mutations(rng.choice(samples), rng) for _ in range(400))]
    llama = LlamaGrammar()
    verdicts = {
        text: (matches(text.encode()), llama.matches(text.encode()), scanner_matches(text.encode()))
        for text in texts
    }
    differing = {text: verdict for text, verdict in verdicts.items() if len(set(verdict)) > 1}
    assert not differing
    taken = sum(verdict[0] for verdict in verdicts.values())
    assert taken >= 150 and len(verdicts) - taken >= 300, "too few texts of one kind to tell"


@pytest.mark.slow
def test_llama_cpp_takes_every_real_answer() -> None:
    llama = LlamaGrammar()
    assert all(llama.matches(text.encode()) for text in references())


def test_the_file_stays_readable_by_both_parsers() -> None:
    grammar = load_grammar()
    assert grammar.isascii()
    rules = re.findall(r"^(\S+)\s*::=", grammar, re.MULTILINE)
    assert "root" in rules and not [rule for rule in rules if "_" in rule]


def test_a_long_list_of_commands_is_taken() -> None:
    commands = [{"keystrokes": f"echo {i}\n", "duration": i % 61} for i in range(200)]
    action = {"analysis": "x" * 5000, "plan": "", "commands": commands, "task_complete": False}
    assert matches(write(action, compact)[0])
