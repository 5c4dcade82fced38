"""edge.answer.constraint, token by token: what it accepts, and that its methods agree with each other.

Run: python -m pytest tests/answer/test_constraint.py
"""

import json
import random
import warnings

import numpy as np
import pytest
from actions import EOS, SAMPLES, indented, matches, random_runs, smol_tokenizer, smol_vocab, write
from llguidance.llamacpp import lltokenizer_from_vocab

from edge.answer.action import parse_action
from edge.answer.constraint import Constraint
from edge.errors import GrammarError

TEXT = write(SAMPLES[3], indented("  "))[0]


def after(text: bytes) -> Constraint:
    constraint = Constraint(smol_tokenizer())
    for token in smol_tokenizer().tokenize_bytes(text):
        constraint.consume(token)
    return constraint


@pytest.mark.parametrize("cut", [0, 1, 17, 20, 40, 70, 90, 120, 240, len(TEXT) - 1, len(TEXT)])
def test_mask_and_accepts_agree_on_every_token(cut: int) -> None:
    constraint = after(TEXT[:cut])
    mask = constraint.mask()
    assert mask.dtype == np.bool_ and mask.shape == (smol_tokenizer().vocab_size,)
    accepted = np.array([constraint.accepts(token) for token in range(len(mask))])
    assert mask.any() and accepted[mask].all()
    if not constraint.forced_bytes():  # where the text is forced, the mask holds its usual tokenization alone
        assert (mask == accepted).all()


def test_special_tokens_are_never_accepted_within_the_action_and_eos_only_after_it() -> None:
    tokenizer = smol_tokenizer()
    special = [token for token in range(tokenizer.vocab_size) if tokenizer.is_special_token(token)]
    assert set(EOS) < set(special)
    constraint = Constraint(tokenizer)
    for token in tokenizer.tokenize_bytes(TEXT):
        assert not constraint.complete
        assert not any(constraint.accepts(s) for s in special)
        assert not constraint.mask()[special].any()
        constraint.consume(token)
    assert constraint.complete
    assert [s for s in special if constraint.accepts(s)] == sorted(EOS)
    assert np.flatnonzero(constraint.mask()).tolist() == sorted(EOS)
    constraint.consume(EOS[1])
    assert constraint.complete
    assert not constraint.mask().any() and not constraint.accepts(EOS[0]) and not constraint.forced_bytes()


def test_a_refused_token_is_one_line_and_changes_nothing() -> None:
    tokenizer = smol_tokenizer()
    constraint = after(TEXT[:60])
    before = constraint.mask()
    refused = int(np.flatnonzero(~before)[100])
    with pytest.raises(GrammarError, match=f"refuses token {refused}") as error:
        constraint.consume(refused)
    assert "\n" not in str(error.value)
    assert (constraint.mask() == before).all()
    for token in tokenizer.tokenize_bytes(TEXT[60:]):
        constraint.consume(token)
    assert constraint.complete


@pytest.mark.parametrize("token", [-1, 49152, 10**9])
def test_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    assert not Constraint(smol_tokenizer()).accepts(token)


def test_answers_do_not_disturb_one_another() -> None:
    first, second = after(TEXT[:60]), Constraint(smol_tokenizer())
    for token in smol_tokenizer().tokenize_bytes(b'{"analysis": "'):
        second.consume(token)
    for token in smol_tokenizer().tokenize_bytes(TEXT[60:]):
        first.consume(token)
    assert first.complete and not second.complete


def test_forced_bytes_are_the_skeleton_and_what_a_given_text_forces() -> None:
    constraint = after(b'{"analysis": "a", "plan": "b", "comm')
    assert constraint.forced_bytes() == b'ands"'
    assert constraint.forced_bytes(b'ands": [{') == b'ands": [{'
    assert constraint.forced_bytes(b'ands": [{"') == b'ands": [{"keystrokes"'
    with pytest.raises(GrammarError, match="refuses b'ands, ' here"):
        constraint.forced_bytes(b"ands, ")
    assert constraint.forced_bytes() == b'ands"'  # asking changes nothing
    constraint = after(TEXT)
    constraint.consume(EOS[0])
    assert constraint.forced_bytes() == b""
    with pytest.raises(GrammarError, match="refuses"):
        constraint.forced_bytes(b" ")


def test_tokens_write_the_text_and_special_ones_nothing() -> None:
    constraint = Constraint(smol_tokenizer())
    assert b"".join(map(constraint.bytes_of, smol_tokenizer().tokenize_bytes(TEXT))) == TEXT
    assert constraint.bytes_of(EOS[0]) == b""


def test_the_mask_is_as_wide_as_the_logits_even_beyond_the_vocabulary() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        padded = lltokenizer_from_vocab(smol_vocab(), n_vocab=49_159, eos_token=EOS)
    mask = Constraint(padded).mask()
    assert mask.shape == (49_159,) and not mask[49_152:].any()
    assert (mask[:49_152] == Constraint(smol_tokenizer()).mask()).all()
    assert not Constraint(padded).accepts(49_155)


@pytest.mark.parametrize(
    ("raw", "good"),
    [
        (b"\xed\x9f\xbf", True),  # U+D7FF
        (b"\xed\xa0\x80", False),  # a surrogate in UTF-8
        (b"\xc3\xa9", True),
        (b"\xc1\xbf", False),  # two bytes where one is enough
        (b"\xe0\x9f\xbf", False),
        (b"\xf4\x8f\xbf\xbf", True),  # U+10FFFF
        (b"\xf4\x90\x80\x80", False),
        (b"\x80", False),
        (b"\xff", False),
    ],
)
def test_bytes_must_be_utf8(raw: bytes, good: bool) -> None:
    tokenizer = smol_tokenizer()
    single = {tokenizer.decode_bytes([t]): t for t in range(tokenizer.vocab_size)}
    assert len(single) > 40_000
    if any(bytes((b,)) not in single for b in raw):
        # SmolLM2 has no token for the bytes that UTF-8 never uses; then nothing can write them
        assert not good
        return
    constraint = after(b'{"analysis": "')
    taken = True
    for b in raw:
        taken = constraint.accepts(single[bytes((b,))])
        if not taken:
            break
        constraint.consume(single[bytes((b,))])
    assert taken == good


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('root ::= "a" nothing', "'nothing' not found"),
        ("root ::= [", "read"),
        ("root ::= [\\ud800]", "compiled"),
    ],
)
def test_a_bad_grammar_is_one_line(grammar: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message) as error:
        Constraint(smol_tokenizer(), grammar)
    assert "\n" not in str(error.value)


def test_another_grammar_can_be_used() -> None:
    tokenizer = smol_tokenizer()
    constraint = Constraint(tokenizer, 'root ::= "yes" "!"?')
    (yes,) = tokenizer.tokenize_bytes(b"yes")
    constraint.consume(yes)
    assert constraint.complete and constraint.accepts(EOS[0])
    assert constraint.accepts(tokenizer.tokenize_bytes(b"!")[0]) and not constraint.accepts(yes)


@pytest.mark.slow
def test_ten_thousand_random_runs_closed_at_random_budgets_are_valid() -> None:
    runs = random_runs()
    assert len(runs) == 10_000
    rng = random.Random(1)
    endings = set()
    n_commands = 0
    for data, keep, ending in runs:
        text = data[:keep].decode("utf-8") + ending
        fields = parse_action(text)
        assert json.loads(text)["analysis"] == fields["analysis"]
        n_commands += len(fields["commands"])
        endings.add(ending)
        if rng.random() < 0.2:
            assert matches(text.encode()), text
    # the runs did get everywhere: into commands, past them, and to the end
    assert n_commands > 500 and "" in endings and "}" in endings and len(endings) > 30
