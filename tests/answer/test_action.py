"""edge.answer.action: actions are read strictly, and closed validly wherever they are cut.

Run: python -m pytest tests/answer/test_action.py
"""

import copy
import json

import pytest
from actions import (
    QUOTES,
    SAMPLES,
    STYLES,
    compact,
    indented,
    matches,
    references,
    sample_texts,
    scan,
    spaced,
    write,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge.answer.action import Action, ActionScanner, Command, close, parse_action
from edge.errors import GrammarError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
seconds = st.integers(0, 60) | st.integers(0, 6000).map(lambda n: n / 100)
actions = st.fixed_dictionaries(
    {
        "analysis": text,
        "plan": text,
        "commands": st.lists(st.fixed_dictionaries({"keystrokes": text, "duration": seconds}), max_size=3),
        "task_complete": st.booleans(),
    }
)
styles, quotes = st.sampled_from(STYLES), st.sampled_from(QUOTES)


# --- close ---


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(action=actions, style=styles, quote=quotes, share=st.floats(0, 1))
def test_any_beginning_of_any_action_closes_to_what_was_finished(action, style, quote, share) -> None:
    data, ends = write(action, style, quote)
    cut = round(share * len(data))
    closed = close(data[:cut])
    fields = parse_action(closed)
    assert json.loads(closed) is not None and scan(closed.encode()).complete
    # only whole commands survive, and all of them
    whole = [Command(c["keystrokes"], c["duration"]) for c in action["commands"]][
        : sum(end <= cut for end in ends)
    ]
    assert list(fields["commands"]) == whole
    assert action["analysis"].startswith(fields["analysis"]) and action["plan"].startswith(fields["plan"])
    assert fields["task_complete"] == (action["task_complete"] and data.rindex(b"true") + 4 <= cut)
    if cut == len(data):
        assert closed.encode() == data


@settings(max_examples=60, deadline=None)
@given(action=actions, style=styles, quote=quotes, share=st.floats(0, 1))
def test_a_closed_text_fits_the_grammar(action, style, quote, share) -> None:
    data, _ = write(action, style, quote)
    assume(not {0xF1, 0xF2} & set(data))  # SmolLM2 has no token for these bytes
    assert matches(close(data[: round(share * len(data))]).encode())


def test_every_beginning_of_every_sample_closes() -> None:
    for data in sample_texts():
        scanner = ActionScanner()
        for i in range(len(data) + 1):
            keep, ending = scanner.closing()
            parse_action(data[:keep].decode() + ending)
            assert keep + 16 > i or scanner.field == "commands"  # little is lost but an open command
            scanner.feed(data[i : i + 1])
        assert scanner.complete and scanner.closing() == (len(data), "")


REST = '"plan":"","commands":[],"task_complete":false}'
LIST = '{"analysis":"a","plan":"b","commands":['
LS = '{"keystrokes":"ls\\n","duration":1}'


@pytest.mark.parametrize(
    ("begun", "closed"),
    [
        ("", '{"analysis":"",' + REST),
        (" \n", ' \n{"analysis":"",' + REST),
        ("{", '{"analysis":"",' + REST),
        ('{ "anal', '{ "analysis":"",' + REST),
        ('{"analysis"', '{"analysis":"",' + REST),
        ('{"analysis": ', '{"analysis": "",' + REST),
        ('{"analysis": "x', '{"analysis": "x",' + REST),
        ('{"analysis": "x\\', '{"analysis": "x",' + REST),
        ('{"analysis": "x\\\\', '{"analysis": "x\\\\",' + REST),
        ('{"analysis": "x\\u00e', '{"analysis": "x",' + REST),
        ('{"analysis": "x\\uD83D', '{"analysis": "x",' + REST),
        ('{"analysis": "x\\uD83D\\uDE0', '{"analysis": "x",' + REST),
        ('{"analysis": "x\\uD83D\\uDE00', '{"analysis": "x\\uD83D\\uDE00",' + REST),
        ('{"analysis": "x"', '{"analysis": "x",' + REST),
        ('{"analysis": "x",\n  ', '{"analysis": "x",\n  ' + REST),
        ('{"analysis": "x", "p', '{"analysis": "x", ' + REST),
        ('{"analysis":"","plan":"b', '{"analysis":"","plan":"b","commands":[],"task_complete":false}'),
        (LIST, LIST + '],"task_complete":false}'),
        (LIST + "\n  ", LIST + '],"task_complete":false}'),
        (LIST + '{"keystrokes":"rm -rf /tmp/x', LIST + '],"task_complete":false}'),
        (LIST + '{"keystrokes":"rm -rf /tmp/x\\n","duration":6', LIST + '],"task_complete":false}'),
        (LIST + '{"keystrokes":"rm -rf /tmp/x\\n","duration":60.0 ', LIST + '],"task_complete":false}'),
        (LIST + LS, LIST + LS + '],"task_complete":false}'),
        (LIST + LS + " ,", LIST + LS + '],"task_complete":false}'),
        (LIST + LS + ',\n{"keystrokes":"rm', LIST + LS + '],"task_complete":false}'),
        (LIST + LS + "," + LS, LIST + LS + "," + LS + '],"task_complete":false}'),
        (LIST + LS + "\n]", LIST + LS + '\n],"task_complete":false}'),
        (LIST + "],\n", LIST + '],\n"task_complete":false}'),
        (LIST + '],"task_complete": tr', LIST + '],"task_complete": false}'),
        (LIST + '],"task_complete": fa', LIST + '],"task_complete": false}'),
        (LIST + '],"task_complete": true', LIST + '],"task_complete": true}'),
        (LIST + '],"task_complete": true\n', LIST + '],"task_complete": true\n}'),
        (LIST + '],"task_complete": true}', LIST + '],"task_complete": true}'),
    ],
)
def test_close(begun: str, closed: str) -> None:
    assert close(begun.encode()) == closed


@pytest.mark.parametrize("character", ["é", "한", "😀"])
def test_a_broken_utf8_character_is_cut_away(character: str) -> None:
    whole = b'{"analysis":"a' + character.encode()
    for cut in range(1, len(character.encode())):
        assert close(whole[:-cut]) == '{"analysis":"a",' + REST
    assert json.loads(close(whole))["analysis"] == "a" + character


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"[",
        b'{"plan"',
        b'{"analysis":1',
        b'{"analysis":"\n',
        b'{"analysis":"\\x',
        b'{"analysis":"\xff',
        b"\xef\xbb\xbf{",
    ]
    + [
        b'{"analysis":"\\ud83dx',
        b'{"analysis":"\xed\xa0',
        b" " * 21,
        (LIST + '{"keystrokes":"","duration":61').encode(),
    ]
    + [(LIST + '],"task_complete":false}' + more).encode() for more in (" ", "\n", "x", "{")],
)
def test_what_no_action_begins_with_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(GrammarError, match="does not fit the action's grammar") as error:
        close(data)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_no_shorter_ending_exists() -> None:
    """Search all endings over JSON's own bytes, shortest first, from every beginning of a small action.

    Two beginnings count as the same if the scanner says the same of them. An ending that decides `true` does
    not count, and neither does one that finishes an open command: the search goes on from what closing() keeps.
    """
    data = write(SAMPLES[3] | {"analysis": "\\é", "plan": "x"}, spaced)[0]
    alphabet = [bytes((b,)) for b in b'{}[]:," \\0aefglnoprstuyckmdi_x']
    for cut in range(len(data) + 1):
        keep, ending = scan(data[:cut]).closing()
        frontier = [(scan(data[:keep]), b"")]
        seen = set()
        for _ in range(len(ending) - 1):
            following = []
            for scanner, tail in frontier:
                for byte in alphabet:
                    longer = copy.copy(scanner)
                    try:
                        longer.feed(byte)
                    except GrammarError:
                        continue
                    state = (longer.field, longer.in_text, longer.at_boundary, longer.closing()[1])
                    if state in seen or (tail + byte).endswith(b":t"):
                        continue
                    seen.add(state)
                    assert not longer.complete, (
                        f"{data[:keep]!r} can end with {tail + byte!r} instead of {ending!r}"
                    )
                    following.append((longer, tail + byte))
            frontier = following
        assert frontier or not ending


# --- the scanner ---


@settings(max_examples=200, deadline=None)
@given(action=actions, style=styles, quote=quotes, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_pieces_of_any_size_are_the_same_as_bytes(action, style, quote, sizes) -> None:
    data, _ = write(action, style, quote)
    pieces, whole, at, i = ActionScanner(), ActionScanner(), 0, 0
    while at < len(data):
        size = sizes[i % len(sizes)]
        pieces.feed(data[at : at + size])
        for byte in data[at : at + size]:
            whole.feed(bytes((byte,)))
        at, i = at + size, i + 1
        assert vars(pieces) == vars(whole)


def test_fields() -> None:
    data, ends = write(SAMPLES[3], indented("  "))
    fields = []
    scanner = ActionScanner()
    for byte in data:
        fields.append(scanner.field)
        scanner.feed(bytes((byte,)))
    assert list(dict.fromkeys([*fields, scanner.field])) == [
        "start",
        "analysis",
        "plan",
        "commands",
        "after",
        "end",
    ]
    assert fields[data.index(b"two steps")] == "analysis" and fields[data.index(b"1. look")] == "plan"
    assert fields[ends[0] - 1] == "commands" and fields[data.rindex(b"true")] == "after"


def test_in_text_and_at_boundary() -> None:
    scanner = scan(b'{"analysis":')
    assert not scanner.in_text and not scanner.at_boundary
    for piece, boundary in [(b'"', True), (b"a", True), (b"\\", False), (b"n", True), (b"\\uD83", False)]:
        scanner.feed(piece)
        assert scanner.in_text and scanner.at_boundary == boundary
    for piece, boundary in [(b"D", False), (b"\\uDE00", True), (b"\xed", False), (b"\x95\x9c", True)]:
        scanner.feed(piece)
        assert scanner.in_text and scanner.at_boundary == boundary
    scanner.feed(b'"')
    assert not scanner.in_text and not scanner.at_boundary
    scanner.feed(b',"plan":"')
    assert scanner.in_text
    scanner.feed(b'","commands":[{"keystrokes":"l')
    assert not scanner.in_text and scanner.at_boundary


def test_gaps_are_the_white_space_at_each_place() -> None:
    text = b'\n{ "analysis":\t"a" ,\n"plan":\t"" ,\n"commands":\t[\n\n'
    scanner = scan(text)
    wanted = {"lead": "\n", "open": " ", "colon": "", "value": "\t", "comma": " ", "key": "\n"}
    assert scanner.gaps == wanted and scanner.gap == ("\n\n", ("empty", "list"))
    scanner.feed(b'{"keystrokes":"')
    assert scanner.gaps == wanted | {"value": None, "list": "\n\n", "in": ""}  # no tab before this string
    assert scanner.gap == ("", ())
    scanner.feed(b'", "duration":1  }\t')
    assert scanner.gaps["pair"] == " " and scanner.gaps["comma"] is None and scanner.gaps["out"] == "  "
    assert scanner.gap == ("\t", ("end", "comma"))
    scanner.feed(b',{"keystrokes" ')
    assert scanner.gaps["next"] == "" and scanner.gap == (" ", ("colon",))
    assert scan(text + b"]").gaps["empty"] == "\n\n"


@settings(max_examples=200, deadline=None)
@given(action=actions, style=styles, quote=quotes)
def test_what_was_shown_is_never_taken_back_and_never_an_open_command(action, style, quote) -> None:
    data, ends = write(action, style, quote)
    scanner, shown = ActionScanner(), 0
    for i in range(len(data)):
        scanner.feed(data[i : i + 1])
        assert shown <= scanner.releasable() <= i + 1
        shown = scanner.releasable()
        assert scanner.closing()[0] >= shown
        if scanner.field == "commands":  # up to a brace or the bracket
            assert shown == max([end for end in ends if end <= i + 1], default=shown)
            assert data[shown - 1 : shown] in (b"[", b"}")
    assert shown == len(data)


# --- parse_action ---


def test_parse_action_reads_every_sample_and_real_answer() -> None:
    for sample in SAMPLES:
        fields = parse_action(write(sample)[0].decode())
        assert fields["analysis"] == sample["analysis"] and fields["task_complete"] is sample["task_complete"]
        commands = [{"keystrokes": c.keystrokes, "duration": c.duration} for c in fields["commands"]]
        assert commands == sample["commands"] and all(type(c["duration"]) is float for c in commands)
    for reference in references():
        assert parse_action(reference)["commands"]


def altered(**changes: object) -> str:
    return json.dumps({"analysis": "", "plan": "", "commands": [], "task_complete": False} | changes)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"analysis":"', "not JSON"),
        ("[]", "keys"),
        ('{"plan":"","analysis":"","commands":[],"task_complete":false}', "in this order"),
        (altered(more=1), "keys"),
        ('{"analysis":"","analysis":"","plan":"","commands":[],"task_complete":false}', "twice"),
        (altered(analysis=None), "analysis must be a string"),
        (altered(plan="\ud83d"), "surrogate"),
        (altered(commands={}), "list"),
        (altered(commands=["ls"]), "command 1"),
        (altered(commands=[{"keystrokes": ""}]), "command 1"),
        (altered(commands=[{"keystrokes": 1, "duration": 1}]), "keystrokes of command 1 must be a string"),
        (altered(commands=[{"keystrokes": "", "duration": True}]), "must be a number"),
        (altered(commands=[{"keystrokes": "", "duration": "1"}]), "must be a number"),
        (altered(commands=[{"keystrokes": "", "duration": 60.5}]), "from 0 to 60"),
        (altered(commands=[{"keystrokes": "", "duration": -0.0}]), "from 0 to 60"),
        (altered(commands=[{"keystrokes": "", "duration": float("nan")}]), "NaN"),
        (altered(commands=[{"keystrokes": "", "duration": float("inf")}]), "Infinity"),
        (altered(commands=[{"keystrokes": "", "duration": 1}]).replace("1}", "1e999}"), "from 0 to 60"),
        (altered(commands=[{"keystrokes": "", "duration": 1}]).replace("1}", "9" * 5000 + "}"), "not JSON"),
        (altered(task_complete=0), "true or false"),
        (altered(task_complete="true"), "true or false"),
    ],
)
def test_parse_action_refuses(answer: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message) as error:
        parse_action(answer)
    assert "\n" not in str(error.value)


def test_to_json_holds_the_action_and_its_metadata_on_one_line() -> None:
    answer = write(SAMPLES[3], compact)[0].decode()
    action = Action(
        **parse_action(answer),
        text=answer,
        thought="hm,\n한",
        finish_reason="length",
        closed_at_budget=True,
        prompt_tokens=10,
        completion_tokens=7,
        forced_tokens=2,
        thought_tokens=1,
    )
    line = action.to_json()
    data = json.loads(line)
    assert "\n" not in line and data["text"] == answer and data["thought"] == "hm,\n한"
    assert {key: data[key] for key in SAMPLES[3]} == SAMPLES[3]
    assert (
        data["finish_reason"] == "length"
        and data["closed_at_budget"] is True
        and data["completion_tokens"] == 7
    )
