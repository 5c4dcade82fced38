"""edge.answer.style and forced text: the learned style is the written one; forced tokens are the tokenizer's own.

Run: python -m pytest tests/answer/test_style.py
"""

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_cpp
import pytest
from actions import (
    EOS,
    QUOTES,
    SAMPLES,
    STYLES,
    compact,
    indented,
    references,
    scan,
    smol_tokenizer,
    smol_vocab,
    spaced,
    write,
)
from llama_grammar import LlamaGrammar

from edge.answer.action import ActionScanner
from edge.answer.constraint import Constraint
from edge.answer.style import (
    FREE,
    PLACES,
    STYLE_NAMES,
    Style,
    StyleName,
    load_grammar,
    style_grammar,
    style_of,
)
from edge.llama.vocabulary import Vocabulary, file_vocabulary

SAMPLE = SAMPLES[3]  # four commands


@pytest.fixture(scope="module")
def smol() -> Vocabulary:
    return Vocabulary(smol_vocab(), EOS)


@pytest.fixture(scope="module")
def tiny(tiny_bf16: Path) -> Iterator[Vocabulary]:
    with file_vocabulary(tiny_bf16) as vocabulary:
        yield vocabulary


def tiny_answers(tiny_folder: Path) -> list[str]:
    rows = (tiny_folder / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["ref_raw"].rsplit("</think>", 1)[-1].strip() for row in rows]


def takes(style: Style, text: bytes) -> bool:
    """Whether the style's grammar accepts the text as a beginning."""
    constraint = Constraint(smol_tokenizer(), style_grammar(style))
    for token in smol_tokenizer().tokenize_bytes(text):
        if not constraint.accepts(token):
            return False
        constraint.consume(token)
    return True


def known(style: Style) -> dict[str, str]:
    return {place: gap for place, gap in zip(PLACES, style, strict=True) if gap is not None}


# --- Styles and their grammars ---


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("sample", SAMPLES)
def test_the_learned_style_takes_what_is_written_at_every_byte(style, sample) -> None:
    text, _ = write(sample, style)
    scanner, before = ActionScanner(), FREE
    for i in range(len(text)):
        scanner.feed(text[i : i + 1])
        learned = style_of("auto", scanner)
        if learned != before:
            assert takes(learned, text[: i + 1])
            before = learned
    assert takes(before, text)


@pytest.mark.parametrize("style", STYLES[:5])
def test_a_consistent_style_is_known_from_its_first_gaps(style) -> None:
    text, _ = write(SAMPLE, style)
    learned = style_of("auto", scan(text[: text.index(b"two")]))
    assert set(known(learned)) == {"open", "colon", "value", "comma", "key", "close"}
    whole = style_of("auto", scan(text[: text.index(b"grep")]))
    assert set(PLACES) - set(known(whole)) == {"lead", "empty"}
    end = scan(text)
    assert known(whole) == {place: gap for place, gap in end.gaps.items() if place != "lead"}
    assert style_of("auto", end) == whole  # nothing is learned anew
    for sample in SAMPLES:  # another action in that style fits, one in another style does not
        assert takes(whole, write(sample, style)[0])
        assert not any(takes(whole, write(sample, other)[0]) for other in STYLES[:5] if other is not style)


def test_what_is_not_written_and_not_implied_stays_free() -> None:
    assert style_of("auto", scan(b'{"analysis" :')) == FREE
    assert known(style_of("auto", scan(b'{\n\n "analysis" : "'))) == {
        "open": "\n\n ",
        "colon": " ",
        "value": " ",
        "comma": "",
        "key": "\n\n ",
    }
    learned = style_of("auto", scan(b'{"analysis":\n"'))
    assert "key" not in known(learned) and known(learned)["value"] == "\n"


def test_commands_on_one_line_in_an_indented_action() -> None:
    command = '{"keystrokes": "ls\\n", "duration": 1}'
    text = f'{{\n  "analysis": "a",\n  "plan": "p",\n  "commands": [{command}, {command}],\n  "task_complete": true\n}}'
    first = style_of("auto", scan(text[: text.index("ls")].encode()))
    assert known(first)["pair"] == " " and known(first)["out"] == "" and "next" not in known(first)
    assert takes(first, text.encode())
    second = style_of("auto", scan(text[: text.rindex("ls")].encode()))
    assert known(second)["next"] == " " and takes(second, text.encode())


def test_a_token_may_end_the_string_and_go_on_with_another_gap() -> None:
    begun = b'{"analysis": "a"\n'
    learned = style_of("auto", scan(begun))
    assert "comma" not in known(learned) and takes(learned, begun + b" ,")
    assert known(style_of("auto", scan(begun + b",")))["comma"] == "\n"
    mixed = scan(begun + b', "plan": "", "commands":')
    assert mixed.gaps["comma"] is None and mixed.gaps["key"] == " "
    assert "comma" not in known(style_of("auto", mixed))


@pytest.mark.parametrize(("name", "indent"), [("compact", None), ("indented", 2)])
def test_given_styles_write_as_python_does(name: StyleName, indent: int | None) -> None:
    style = style_of(name, ActionScanner())
    assert None not in style
    for sample in SAMPLES:
        text = json.dumps(sample, indent=indent).encode()
        assert takes(style, text) and style_of(name, scan(text)) == style
        assert not takes(style, b" " + text)
        assert not takes(style, json.dumps(sample, indent=4).encode())


def test_free_is_the_plain_grammar() -> None:
    assert {style_of("free", scan(write(SAMPLE, style)[0])) for style in STYLES} == {FREE}
    assert style_grammar(FREE) == load_grammar()
    assert set(STYLE_NAMES) == {"auto", "compact", "indented", "free"}


def test_every_place_has_its_own_rule() -> None:
    plain = load_grammar().splitlines()
    for i, place in enumerate(PLACES):
        style = (*FREE[:i], " \n\t", *FREE[i + 1 :])
        changed = [line for line in style_grammar(style).splitlines() if line not in plain]
        assert [line.split() for line in changed] == [[f"ws-{place}", "::=", '"', '\\n\\t"']]


@pytest.mark.parametrize("style", STYLES)
def test_llama_cpp_reads_a_styles_grammar_as_llguidance_does(style) -> None:
    own = write(SAMPLE, style)[0]
    learned = style_of("auto", scan(own))
    llama = LlamaGrammar(style_grammar(learned))
    texts = [own, *(write(sample, gap)[0] for sample in SAMPLES for gap in STYLES)]
    verdicts = [takes(learned, text) for text in texts]
    assert verdicts[0] and not all(verdicts)
    assert verdicts == [llama.matches(text) for text in texts]


# --- Forced text ---


def at(text: str, style: Style) -> Constraint:
    constraint = Constraint(smol_tokenizer(), style_grammar(style))
    for token in smol_tokenizer().tokenize_bytes(text.encode()):
        constraint.consume(token)
    return constraint


def test_forced_text_ends_where_the_model_has_a_choice() -> None:
    style = style_of("indented", ActionScanner())
    text = json.dumps(SAMPLE, indent=2)
    for written, forced in [
        ("", '{\n  "analysis": "'),
        ('two steps"', ',\n  "plan": "'),
        ('remove"', ',\n  "commands": ['),
        ("[\n", '    {\n      "keystrokes": "'),
        ("\\n\"", ',\n      "duration": '),
        ("0.5", ""),
        ("0.5\n", "    }"),
        ("    },", '\n    {\n      "keystrokes": "'),
        ("60.0\n    }\n", '  ],\n  "task_complete": '),
        ('complete": t', "rue\n}"),
        ("true\n}", ""),
    ]:  # fmt: skip
        begun = text[: text.index(written) + len(written)]
        constraint = at(begun, style)
        assert constraint.forced_bytes().decode() == forced, begun
        assert text.startswith(begun + forced)
    assert at(text, style).forced_bytes() == b""
    assert at('{"analysis": "a"', FREE).forced_bytes() == b""  # white space or a comma


@pytest.mark.parametrize("style", STYLES[:5])
def test_closing_a_string_is_a_quote_and_what_it_forces(style) -> None:
    text = write(SAMPLE | {"plan": ""}, style)[0].decode()
    begun = text[: text.index("two ") + 4]
    constraint = at(begun, style_of("auto", scan(begun.encode())))
    gap = style(",", '"plan"', 1)
    closing = f'",{gap}"plan":{style(":", "", 1)}"'
    assert constraint.forced_bytes(b'"').decode() == closing
    rest = text[text.index('"plan"') :].partition('"",')[2].partition("[")[0]
    assert constraint.forced_bytes((closing + '"').encode()).decode() == closing + '",' + rest + "["
    assert constraint.forced_bytes() == b""  # asking has not changed it
    assert at(begun, FREE).forced_bytes(b'"') == b'"'


def own_tokens(vocabulary: Vocabulary, text: str) -> list[int]:
    """The text in the tokenizer's own tokens, after a line break, where a prompt ends."""
    tokens = vocabulary.encode("a\n" + text, special=False)
    count = next(n for n in range(len(tokens)) if vocabulary.text(tokens[:n]).endswith("\n"))
    assert vocabulary.text(tokens[count:]) == text
    return tokens[count:]


def forced_share(vocabulary: Vocabulary, texts: list[str], name: StyleName = "auto") -> float:
    """Write the texts in their own tokens and check that forced tokens agree; returns how many were forced."""
    forced = total = 0
    for text in texts:
        own, i, last = own_tokens(vocabulary, text), 0, None
        total += len(own)
        scanner = ActionScanner()
        style = style_of(name, scanner)
        constraint = Constraint(vocabulary.matcher_tokens(), style_grammar(style))
        while not constraint.complete:
            tokens = vocabulary.forced_tokens(last, constraint.forced_bytes())
            assert tokens == own[i : i + len(tokens)], (text, scanner.gaps, vocabulary.text(own[:i]))
            forced += len(tokens)
            for last in tokens or own[i : i + 1]:
                constraint.consume(last)
                scanner.feed(vocabulary.piece(last))
            i += len(tokens) or 1
            if style != style_of(name, scanner):
                style = style_of(name, scanner)
                constraint = Constraint(vocabulary.matcher_tokens(), style_grammar(style))
                for token in own[:i]:
                    constraint.consume(token)
        assert i == len(own)
    return forced / total


@pytest.mark.slow
def test_forced_tokens_are_the_tokenizers_own_on_real_answers(smol: Vocabulary, tiny: Vocabulary) -> None:
    answers = references()
    for vocabulary in (smol, tiny):
        assert 0.09 < forced_share(vocabulary, answers) < 0.2
        assert forced_share(vocabulary, answers[:20], "free") < 0.7 * forced_share(vocabulary, answers[:20])
        one_line = [json.dumps(json.loads(answer)) for answer in answers[:40]]
        assert forced_share(vocabulary, one_line, "compact") > forced_share(vocabulary, one_line) > 0.03


@pytest.mark.slow
def test_forced_tokens_are_the_tokenizers_own_on_short_answers(
    smol: Vocabulary, tiny: Vocabulary, tiny_folder: Path
) -> None:
    answers = tiny_answers(tiny_folder)
    indented_ = [json.dumps(json.loads(answer), indent=2) for answer in answers]
    for vocabulary in (smol, tiny):
        assert forced_share(vocabulary, answers) > 0.25
        assert (
            forced_share(vocabulary, indented_[:50], "indented")
            > forced_share(vocabulary, indented_[:50])
            > 0.3
        )


@pytest.mark.parametrize("quote", QUOTES)
@pytest.mark.parametrize("style", STYLES)
def test_forced_tokens_are_the_tokenizers_own_on_samples(smol, tiny, style, quote) -> None:
    texts = [write(sample, style, quote)[0].decode().lstrip() for sample in SAMPLES]
    for vocabulary in (smol, tiny):
        writable = [text for text in texts if vocabulary.text(vocabulary.encode(text, special=False)) == text]
        assert len(writable) >= 3
        # white space that changes is only free where no style is learned
        assert forced_share(vocabulary, writable, "auto" if style in STYLES[:5] else "free") > 0


# --- forced_tokens ---


def test_the_choice_is_left_where_tokens_may_merge(smol: Vocabulary, tiny: Vocabulary) -> None:
    for vocabulary in (smol, tiny):
        quote = vocabulary.encode('"', special=False)[-1]
        for text in (b', "plan": "', b',"plan":"', b',\n  "plan": "'):
            tokens = vocabulary.forced_tokens(quote, text)
            written = b"".join(map(vocabulary.piece, tokens))
            assert text.startswith(written) and b"plan" in written
            assert len(written) < len(text)  # never the quote that opens the string
        assert vocabulary.forced_tokens(quote, b"") == vocabulary.forced_tokens(None, b"") == []
        (whole,) = vocabulary.forced_tokens(quote, b'"', whole=True)
        assert vocabulary.piece(whole) == b'"'
        assert vocabulary.forced_tokens(quote, b'"') == []  # it may be `",`


def test_special_tokens_are_written_as_text(smol: Vocabulary) -> None:
    tokens = smol.forced_tokens(None, b"<|im_end|> \xc3", whole=True)
    assert smol.text(tokens).startswith("<|im_end|>") and not set(tokens) & set(EOS)


def spm_file(path: Path, blank: bool) -> Path:
    """A SentencePiece vocabulary. `blank`: whether it puts a blank before every text."""
    words = ['":', '",', '_"', '_"p', '"p', "pl", "an", "plan", "\n_", "__", "\n__", "[]"]
    words = [word.replace("_", "\u2581") for word in words]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    singles = [*(chr(c) for c in range(0x21, 0x7F)), "\u2581"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*tokens, *words, *singles])
    writer.add_token_scores(
        [*[0.0] * len(tokens), *(-float(i) for i in range(len(words))), *[-100.0] * len(singles)]
    )
    writer.add_token_types([*kinds, *[1] * (len(words) + len(singles))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(blank)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("blank", [True, False])
def test_sentencepiece_with_and_without_a_blank_before_every_text(tmp_path: Path, blank: bool) -> None:
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(spm_file(tmp_path / "spm.gguf", blank)).encode(), params)
    assert model
    try:
        vocabulary = Vocabulary(llama_cpp.llama_model_get_vocab(model), [2])
        assert vocabulary.text(vocabulary.encode("plan")) == (" plan" if blank else "plan")
        for gap in (compact, spaced, indented("  "), indented("\t")):
            texts = [write(sample, gap)[0].decode() for sample in SAMPLES]
            assert forced_share(vocabulary, texts) > 0.1
        for text in (b', "plan": "', b"[", b' "', b"  x", b'"plan"'):
            tokens = vocabulary.forced_tokens(None, text)
            assert text.startswith(b"".join(map(vocabulary.piece, tokens)))
            tokens = vocabulary.forced_tokens(None, text, whole=True)
            assert text == b"".join(map(vocabulary.piece, tokens))
    finally:
        llama_cpp.llama_model_free(model)
