"""Test the conversion of tokenizer.json to llama.cpp's vocabulary: recognition, and equal tokens on real text.

pytest tests/conversion/test_tokenizer.py
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import make_tokenizers
import pytest
from make_tokenizers import LFM2_REGEX, N_VOCAB, SPECIAL, split
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from edge.conversion.tokenizer import make_vocabulary
from edge.conversion.tokenizer_check import PROBE, check_tokenization
from edge.conversion.tokenizer_json import read_tokenizer
from edge.convert import convert
from edge.errors import ConversionError
from edge.formats.checkpoint import open_checkpoint
from edge.formats.gguf import read_model_file
from edge.llama.vocabulary import file_vocabulary

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(random_llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of a small checkpoint; a test can replace its tokenizer."""
    return Path(shutil.copytree(random_llama_folder, tmp_path / "model"))


def rename(tokenizer: dict[str, Any], old: str, new: str) -> None:
    """Give a token another text."""
    vocab = tokenizer["model"]["vocab"]
    vocab[new] = vocab.pop(old)
    for token in tokenizer["added_tokens"]:
        if token["content"] == old:
            token["content"] = new


def save(folder: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))


def change_json(path: Path, change: Change) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def byte_level(pre_tokenizer: Any, **model: Any) -> Tokenizer:
    """A BPE with tokens of several scripts, so that a wrong regex gives other tokens."""
    tokenizer = Tokenizer(BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The text twice, so that rare pieces become tokens and another split of the text gives other tokens.
    tokenizer.train_from_iterator([PROBE, PROBE, Path(__file__).read_text(encoding="utf-8")], trainer)
    return tokenizer


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
SMOLLM = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])


@pytest.mark.parametrize(
    ("name", "pre_tokenizer", "ignore_merges"),
    [
        ("lfm2", split(LFM2_REGEX), True),
        ("dbrx", split(LFM2_REGEX), False),
        ("llama-bpe", split(LLAMA3), True),
        ("dbrx", split(LLAMA3), False),
        ("qwen2", split(QWEN2), False),
        ("qwen35", split(QWEN35), False),
        ("gpt-4o", split(GPT4O), False),
        ("tekken", split(TEKKEN), True),
        ("gpt-2", GPT2, False),
        ("smollm", SMOLLM, False),
    ],
)
def test_pre_tokenizer_by_structure(name: str, pre_tokenizer: Any, ignore_merges: bool, folder: Path) -> None:
    """edge recognises the pre-tokenizer, and convert checks that llama.cpp gives the same tokens on the probe."""
    save(folder, byte_level(pre_tokenizer, ignore_merges=ignore_merges))
    assert make_vocabulary(open_checkpoint(folder), N_VOCAB).pre == name
    convert(folder, quant="BF16", out=folder / "x.gguf")


MARKS = "हिन्दी नमस्ते "  # words with combining marks


@pytest.mark.parametrize(("regex", "ignore_merges"), [(TEKKEN, True), (GPT4O, False)])
def test_a_regex_that_is_another_one_in_llama_cpp(
    regex: str, ignore_merges: bool, folder: Path, tmp_path: Path
) -> None:
    """Published Tekken vocabularies have tokens across combining marks, where llama.cpp splits: a note says so."""
    tokenizer = Tokenizer(BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = split(regex)
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([MARKS * 99, PROBE * 9], trainer)
    save(folder, tokenizer)
    done = convert(folder, quant="BF16", out=tmp_path / "m.gguf", threads=1)
    (note,) = [line for line in done.warnings if "llama.cpp splits words with combining marks" in line]
    assert "1 of " in note and "日本語" in note  # the line of the probe text that has Hindi
    with file_vocabulary(done.path) as vocabulary:
        for text in (
            "ls -la | grep 'foo' # it's",
            "터미널에서 현재 디렉터리",
            "naïve café Ελληνικά",
            "fooBar HTTPServer",
        ):
            assert vocabulary.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids
        for text in MARKS.split():
            assert vocabulary.encode(text) != tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(("behavior", "invert"), [("removed", True), ("isolated", True)])
def test_a_split_that_keeps_what_its_regex_finds(behavior: str, invert: bool, folder: Path) -> None:
    """As phi-4 has it: what is not found is removed, and that is nothing, since the regex covers all text."""
    steps = [
        pre_tokenizers.Split(Regex(LLAMA3), behavior, invert=invert),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    save(folder, byte_level(pre_tokenizers.Sequence(steps)))
    assert make_vocabulary(open_checkpoint(folder), N_VOCAB).pre == "dbrx"
    done = convert(folder, quant="BF16", out=folder / "x.gguf")
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    with file_vocabulary(done.path) as vocabulary:
        assert vocabulary.encode(PROBE) == reference(PROBE, add_special_tokens=False).input_ids
    change_json(
        folder / "tokenizer.json",
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed", invert=False),
    )
    with pytest.raises(ConversionError, match=r"llama.cpp has no pre-tokenizer for"):
        convert(folder, quant="BF16", out=folder / "y.gguf")


def test_every_known_regex_covers_all_text() -> None:
    """So that a Split can also remove what lies between the matches."""
    for regex in (LFM2_REGEX, LLAMA3, QWEN2, QWEN35, TEKKEN, GPT4O):
        kept = pre_tokenizers.Split(Regex(regex), "removed", invert=True)
        for first in range(0, 0x20000, 0x800):
            text = "".join(chr(i) for i in range(first, first + 0x800) if not 0xD800 <= i < 0xE000)
            assert "".join(part for part, _ in kept.pre_tokenize_str(text)) == text
        mixed = PROBE + " \n".join(PROBE) + "\r\n \t".join(PROBE)
        assert "".join(part for part, _ in kept.pre_tokenize_str(mixed)) == mixed


def test_wrong_pre_tokenizer_is_noticed(folder: Path) -> None:
    """The check can fail: single digits in the GGUF, groups of digits in tokenizer.json."""
    save(folder, byte_level(split(QWEN2)))
    path = convert(folder, quant="BF16", out=folder / "x.gguf").path
    save(folder, byte_level(split(LLAMA3)))
    with pytest.raises(
        ConversionError, match=r"tokenizes differently after .* tokenizers gives \[.*llama.cpp \["
    ):
        check_tokenization(path, read_tokenizer(folder / "tokenizer.json"), add_special=False)


@pytest.mark.slow
def test_smollm2_and_the_embedded_model(smollm2_folder: Path, request: pytest.FixtureRequest) -> None:
    vocabulary = make_vocabulary(open_checkpoint(smollm2_folder), 49152)
    assert (vocabulary.model, vocabulary.pre) == ("gpt2", "smollm")
    assert vocabulary.special_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 2}
    assert (vocabulary.add_bos, vocabulary.add_eos) == (False, False)
    tiny = open_checkpoint(request.getfixturevalue("tiny_folder"))
    vocabulary = make_vocabulary(tiny, tiny.config["vocab_size"])
    assert vocabulary.pre == "lfm2"
    for text in ("<think>", "</think>", "<|im_start|>", "<|im_end|>"):
        assert vocabulary.tokens.count(text) == 1


@pytest.mark.slow
def test_recorded_sessions_tokenize_alike(smollm2_bf16: Path, smollm2_folder: Path, shared: Path) -> None:
    """The recorded terminal sessions have the same tokens in llama.cpp and in the tokenizers package."""
    import llama_cpp

    tokenizer = Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    llm = llama_cpp.Llama(str(smollm2_bf16), vocab_only=True, verbose=False)
    try:
        rows = (shared / "data" / "replay_terminal_dev.jsonl").read_text(encoding="utf-8").splitlines()
        for row in rows[::4]:
            for message in json.loads(row)["messages"]:
                text = message["content"]
                ids = llm.tokenize(text.encode(), add_bos=False, special=True)
                assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        llm.close()


def sentencepiece_like() -> Tokenizer:
    """The structure of Llama 2: ▁ for spaces, bytes as the fallback, no pre-tokenizer."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    text = "\n".join(line.lower() for line in Path(__file__).read_text(encoding="utf-8").splitlines()[:200])
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False
    )
    trained = Tokenizer(BPE())
    trained.normalizer = tokenizer.normalizer
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator([text], trainer)
    state = json.loads(trained.to_str())["model"]
    model = BPE(
        state["vocab"],
        [tuple(m) for m in state["merges"]],
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<unk>",
    )
    result = Tokenizer(model)
    result.normalizer = tokenizer.normalizer
    result.add_special_tokens(["<unk>", "<s>", "</s>"])
    result.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return result


def test_sentencepiece_like(folder: Path) -> None:
    save(folder, sentencepiece_like())
    change_json(
        folder / "tokenizer_config.json",
        lambda c: c.update(bos_token="<s>", eos_token="</s>", unk_token="<unk>"),
    )
    vocabulary = make_vocabulary(open_checkpoint(folder), N_VOCAB)
    assert (vocabulary.model, vocabulary.add_bos, vocabulary.add_space_prefix) == ("llama", True, True)
    assert vocabulary.types[3 : 3 + 256] == [int(gguf.TokenType.BYTE)] * 256
    convert(folder, quant="BF16", out=folder / "x.gguf")
    change_json(folder / "tokenizer.json", lambda t: rename(t, "<0x7F>", "<0x7f>"))
    with pytest.raises(ConversionError, match="has no token <0x7F> for its byte fallback"):
        convert(folder, quant="BF16", out=folder / "x.gguf", check=False)


def kinds(vocabulary: Any, *texts: str) -> list[tuple[int, float | None]]:
    """Type and score of each token."""
    ids = [vocabulary.tokens.index(text) for text in texts]
    return [(vocabulary.types[i], vocabulary.scores and vocabulary.scores[i]) for i in ids]


CONTROL, USER, NORMAL, BYTE = (
    int(kind)
    for kind in (
        gguf.TokenType.CONTROL,
        gguf.TokenType.USER_DEFINED,
        gguf.TokenType.NORMAL,
        gguf.TokenType.BYTE,
    )
)


def test_gemma3(folder: Path) -> None:
    """Runs of spaces are tokens with spaces, not ▁. The scores follow the order of the merges."""
    make_tokenizers.gemma3(folder)
    change_json(folder / "config.json", lambda c: c.update(eos_token_id=1))
    vocabulary = make_vocabulary(open_checkpoint(folder), N_VOCAB)
    assert (vocabulary.model, vocabulary.pre) == ("llama", "default")
    assert (vocabulary.add_bos, vocabulary.add_space_prefix, vocabulary.merges) == (True, False, [])
    assert vocabulary.special_ids == {"bos": 2, "eos": 1, "unk": 3, "pad": 0, "eot": 6}
    assert "▁▁" not in vocabulary.tokens
    assert kinds(vocabulary, "   ", "\n\n", "<unused0>", "<end_of_turn>", "<0x0A>") == [
        (USER, -1000.0),
        (USER, -1000.0),
        (CONTROL, -1000.0),
        (CONTROL, -1000.0),
        (BYTE, 0.0),
    ]
    at = vocabulary.tokens.index("\n" * 5) + 1
    assert vocabulary.scores is not None
    assert vocabulary.scores[at:] == [-float(i) for i in range(N_VOCAB - at)]
    assert vocabulary.types[at:] == [NORMAL] * (N_VOCAB - at)
    convert(folder, quant="BF16", out=folder / "x.gguf")


def test_gemma4(folder: Path) -> None:
    """The same structure, but llama.cpp uses the merges. Tokens that a chat parser reads are visible."""
    make_tokenizers.gemma4(folder)
    change_json(folder / "config.json", lambda c: c.update(architectures=["Gemma4ForCausalLM"]))
    vocabulary = make_vocabulary(open_checkpoint(folder), N_VOCAB)
    assert (vocabulary.model, vocabulary.pre, vocabulary.add_bos) == ("gemma4", None, True)
    assert vocabulary.merges[0] == f"{'▁' * 8} ▁"
    assert kinds(vocabulary, "▁▁▁", "\n\n", "<|tool_call>", "<turn|>", "<0x0A>") == [
        (NORMAL, -1000.0),
        (NORMAL, -1000.0),
        (USER, -1000.0),
        (CONTROL, -1000.0),
        (BYTE, -1000.0),
    ]
    change_json(folder / "tokenizer_config.json", lambda c: c.pop("bos_token"))
    change_json(folder / "config.json", lambda c: c.pop("bos_token_id"))
    assert make_vocabulary(open_checkpoint(folder), N_VOCAB).special_ids["bos"] == 2  # put before a text
    change_json(folder / "tokenizer.json", lambda t: t.update(post_processor=None))
    assert make_vocabulary(open_checkpoint(folder), N_VOCAB).special_ids["bos"] == 2  # named by the class
    change_json(folder / "tokenizer_config.json", lambda c: c.pop("tokenizer_class"))
    with pytest.raises(ConversionError, match="names no bos_token, which"):
        make_vocabulary(open_checkpoint(folder), N_VOCAB)


def test_mistral(folder: Path) -> None:
    """Both kinds: a space before each text and bytes as the fallback, or byte-level with Tekken's regex."""
    make_tokenizers.mistral(folder)
    vocabulary = make_vocabulary(open_checkpoint(folder), N_VOCAB)
    assert (vocabulary.model, vocabulary.add_space_prefix, vocabulary.add_bos) == ("llama", True, True)
    convert(folder, quant="BF16", out=folder / "x.gguf")
    make_tokenizers.tekken(folder)
    vocabulary = make_vocabulary(open_checkpoint(folder), N_VOCAB)
    assert (vocabulary.model, vocabulary.pre, vocabulary.add_bos) == ("gpt2", "tekken", True)
    convert(folder, quant="BF16", out=folder / "x.gguf", force=True)


def test_a_parents_special_ids(folder: Path) -> None:
    """A multimodal model stores them in text_config; its own ids take precedence."""
    (folder / "tokenizer_config.json").unlink()
    change_json(
        folder / "config.json",
        lambda c: c.update(text_config=dict(c), eos_token_id=None, bos_token_id=3),
    )
    assert make_vocabulary(open_checkpoint(folder), N_VOCAB).special_ids == {"bos": 3, "eos": 4, "pad": 0}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t["model"].update(type="Unigram"), "is of type Unigram"),
        (lambda t: t.pop("model"), "holds no BPE model"),
        (
            lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{L}+|odd"),
            r"no pre-tokenizer for \p{L}+|odd then bytes",
        ),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), '{"type": "Whitespace"}'),
        (lambda t: t.update(pre_tokenizer=None), "no pre-tokenizer for null"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "no normalizer"),
        (
            lambda t: t["model"]["vocab"].update(extra=N_VOCAB),
            f"has id {N_VOCAB}, beyond config.json's vocab_size",
        ),
        (lambda t: t["model"]["merges"].append(["a"]), "is not a pair of tokens"),
        (lambda t: t["model"].update(continuing_subword_prefix="##"), "has no continuing_subword_prefix"),
        (lambda t: t["model"].update(end_of_word_suffix="</w>"), "has no end_of_word_suffix"),
        (lambda t: t["model"].update(dropout=0.1), "set dropout to null"),
        (lambda t: t["model"]["merges"].append(["a b", "c"]), "contains a space"),
        (lambda t: t["added_tokens"].append({"id": "x", "content": "y"}), "added_tokens is malformed"),
        (lambda t: rename(t, "<|pad|>", "a\0b"), "which llama.cpp cannot hold"),
        (
            lambda t: (t["model"]["vocab"].pop("<|pad|>"), t["added_tokens"][0].update(content="e")),
            "are both 'e'",
        ),
        (lambda t: t["added_tokens"][0].update(content="new"), "id 0 is both '<|pad|>' and 'new'"),
        (lambda t: t["model"]["vocab"].update(new=9), "id 9 is both"),
        (lambda t: t["added_tokens"].append("x"), "added_tokens is malformed"),
        (lambda t: t["added_tokens"].append({"id": 5, "content": None}), "added_tokens is malformed"),
        (lambda t: t.update(post_processor=[1]), "the tokenizers package cannot read it"),
        (lambda t: t.update(post_processor={"processors": 3}), "the tokenizers package cannot read it"),
        (lambda t: t.update(normalizer="x"), "the tokenizers package cannot read it"),
        (lambda t: t.update(normalizer={"normalizers": [1]}), "the tokenizers package cannot read it"),
        (lambda t: t.update(normalizer={"type": "Lowercase", "normalizers": [1]}), "no normalizer"),
        (lambda t: t.update(pre_tokenizer=3), "the tokenizers package cannot read it"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_what_llama_cpp_cannot_have_is_one_clear_line(
    change: Change, problem: str, check: bool, folder: Path
) -> None:
    change_json(folder / "tokenizer.json", change)
    with pytest.raises(ConversionError) as caught:
        convert(folder, quant="BF16", out=folder / "x.gguf", check=check)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("*.gguf"))
    assert not list(folder.glob(".*"))


def add_tokens(tokenizer: dict[str, Any], texts: list[str], **flags: object) -> None:
    """Make the last entries of the vocabulary added tokens; the last one has the flags."""
    vocab = tokenizer["model"]["vocab"]
    by_id = {i: text for text, i in vocab.items()}
    ids = sorted(by_id)[-len(texts) :]
    gone = {by_id[i] for i in ids}
    tokenizer["model"]["merges"] = [
        merge for merge in tokenizer["model"]["merges"] if gone.isdisjoint({*merge, "".join(merge)})
    ]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for text, i in zip(texts, ids, strict=True):
        del vocab[by_id[i]]
        vocab[text] = i
        tokenizer["added_tokens"].append({"id": i, "content": text, **plain})
    tokenizer["added_tokens"][-1] |= flags


MANY = [f"<extra{i}>" for i in range(250)]


@pytest.mark.parametrize(
    ("texts", "flags"),
    [
        (MANY, {"lstrip": True}),
        (MANY, {"rstrip": True}),
        (MANY, {"single_word": True}),
        ([*MANY, "ab_c", "b_c_de_f"], {}),
        (["b_c_de_f", "ab_c", *MANY], {}),
        (["aab", "abbbb", *MANY], {"special": True}),
        # Short ones with the same beginning, a token that ends with it, and one that is longer than that.
        (
            [*(f"<{i}>" for i in range(40)), "<the longest of all these tokens>", "middle of a long token<"],
            {},
        ),
        (
            ["middle of a long token<", "<the longest of all these tokens>", *(f"<{i}>" for i in range(40))],
            {},
        ),
    ],
)
def test_every_added_token_is_compared(
    texts: list[str], flags: dict[str, bool], folder: Path, tmp_path: Path
) -> None:
    """llama.cpp has no flags of tokens, and takes the longer of two tokens that overlap."""
    change_json(folder / "tokenizer.json", lambda t: add_tokens(t, texts, **flags))
    with pytest.raises(ConversionError, match=r"llama\.cpp tokenizes differently"):
        convert(folder, quant="BF16", out=tmp_path / "x.gguf")


def test_many_added_tokens_without_flags_pass(folder: Path, tmp_path: Path) -> None:
    runs = ["\n" * n for n in range(2, 30)]  # as Gemma has them: they overlap, and both take the longest
    change_json(folder / "tokenizer.json", lambda t: add_tokens(t, [*MANY, *runs], special=True))
    convert(folder, quant="BF16", out=tmp_path / "x.gguf")


@pytest.mark.parametrize("name", ["my-Phi-3-mini", "phi3-distill"])
@pytest.mark.parametrize("like", [False, True])
def test_a_name_that_llama_cpp_obeys(name: str, like: bool, folder: Path, tmp_path: Path) -> None:
    """llama.cpp takes the spaces after special tokens in a model of this name, and looks four tokens up."""
    source = folder.rename(tmp_path / name)
    if like:  # as Phi-3's own tokenizer has it
        texts = ["<unk>", "<s>", "</s>", "<|end|>"]
        change_json(source / "tokenizer.json", lambda t: add_tokens(t, texts, rstrip=True, special=True))
        for token in (
            "<|pad|>",
            "<|startoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "</s>",
            "<think>",
            "</think>",
        ):

            def strip(stored: dict[str, Any], token: str = token) -> None:
                next(one for one in stored["added_tokens"] if one["content"] == token)["rstrip"] = True

            change_json(source / "tokenizer.json", strip)
    done = convert(source, quant="BF16", out=tmp_path / "x.gguf")
    assert (name in gguf.GGUFReader(done.path).fields["general.name"].contents()) is like


def test_missing_ids_are_padded(folder: Path) -> None:
    """The vocabulary size in config.json is often larger than that of the tokenizer."""
    checkpoint = open_checkpoint(folder)
    vocabulary = make_vocabulary(checkpoint, N_VOCAB + 2)
    assert vocabulary.tokens[-2:] == [f"[PAD{N_VOCAB}]", f"[PAD{N_VOCAB + 1}]"]
    assert vocabulary.types[-2:] == [int(gguf.TokenType.UNUSED)] * 2
    clash = {**checkpoint.tokenizer["model"]["vocab"], f"[PAD{N_VOCAB}]": N_VOCAB + 1}
    tokenizer = {**checkpoint.tokenizer, "model": {**checkpoint.tokenizer["model"], "vocab": clash}}
    with pytest.raises(ConversionError, match="are both"):
        make_vocabulary(replace(checkpoint, tokenizer=tokenizer), N_VOCAB + 2)


def test_bos_eos_and_special_ids(folder: Path) -> None:
    """The post-processor precedes tokenizer_config.json, texts precede ids, and several EOS are kept."""

    def vocabulary() -> Any:
        return make_vocabulary(open_checkpoint(folder), N_VOCAB)

    assert (vocabulary().add_bos, vocabulary().add_eos) == (True, False)
    change_json(folder / "tokenizer_config.json", lambda c: c.update(add_bos_token=False, add_eos_token=True))
    assert (vocabulary().add_bos, vocabulary().add_eos) == (True, False)
    change_json(folder / "tokenizer.json", lambda t: t.update(post_processor=None))
    assert (vocabulary().add_bos, vocabulary().add_eos) == (False, True)
    change_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=[4, 2]))
    assert vocabulary().special_ids == {"bos": 1, "eos": 4, "pad": 0, "eot": 2}
    change_json(folder / "tokenizer_config.json", lambda c: c.update(eos_token={"content": "<|endoftext|>"}))
    assert vocabulary().special_ids["eos"] == 2
    model = read_model_file(convert(folder, quant="BF16", out=folder / "x.gguf").path)
    assert (model.bos_token, model.eos_token, model.add_bos) == ("<|startoftext|>", "<|endoftext|>", False)


def test_bos_is_not_invented(folder: Path) -> None:
    """As in transformers: the id in config.json counts only without a tokenizer_config.json."""

    def bos() -> tuple[int | None, bool]:
        vocabulary = make_vocabulary(open_checkpoint(folder), N_VOCAB)
        return vocabulary.special_ids.get("bos"), vocabulary.add_bos

    change_json(folder / "tokenizer.json", lambda t: t.update(post_processor=None))
    change_json(folder / "tokenizer_config.json", lambda c: c.update(bos_token=None, add_bos_token=True))
    assert bos() == (None, False)
    change_json(folder / "tokenizer_config.json", lambda c: c.pop("bos_token"))
    assert bos() == (None, False)
    model = read_model_file(convert(folder, quant="BF16", out=folder / "x.gguf").path)
    assert (model.bos_token, model.eos_token) == (None, "<|im_end|>")
    (folder / "tokenizer_config.json").unlink()
    assert bos() == (1, False)


Part = dict[str, Any]
IM_END: Part = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
END: Part = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
BOS: Part = {"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}
TEXT: Part = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize(
    ("single", "names", "note"),
    [
        ([BOS, TEXT], {"bos_token": None}, "names no bos_token, so transformers leaves it out of"),
        ([BOS, TEXT], {"bos_token": ""}, "names no bos_token, so transformers leaves it out of"),
        (
            [BOS, TEXT],
            {"bos_token": "<|im_start|>"},
            "puts '<|startoftext|>' before a text and nothing after",
        ),
        ([BOS, BOS, TEXT], {}, "puts '<|startoftext|>', '<|startoftext|>' before a text"),
        (
            [BOS, TEXT, END],
            {},
            "'<|endoftext|>' after it; a GGUF has only the BOS ('<|startoftext|>') and the EOS",
        ),
        ([TEXT, IM_END], {}, None),
        ([BOS, TEXT, IM_END], {}, None),
        ([BOS, TEXT], {}, None),
    ],
)
def test_what_tokenizer_json_puts_around_a_text(
    single: list[Part], names: dict[str, Any], note: str | None, folder: Path
) -> None:
    """What a GGUF cannot say is a note, no refusal: prompts of a chat template do not need it."""
    tokens = {text: {"id": text, "ids": [i], "tokens": [text]} for i, text in enumerate(SPECIAL)}
    step = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    change_json(folder / "tokenizer.json", lambda t: t.update(post_processor=step))
    change_json(folder / "tokenizer_config.json", lambda c: c.update(names))
    done = convert(folder, quant="BF16", out=folder / "x.gguf")
    found = [line for line in done.warnings if "bos_token" in line or "before a text" in line]
    assert len(found) == (note is not None) and all(note in line for line in found if note)
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    with file_vocabulary(done.path) as vocabulary:
        assert vocabulary.encode("ls -la") == reference.encode("ls -la", add_special_tokens=False)
        if note is None or "names no" in note:
            assert vocabulary.encode("ls -la", ends=True) == reference.encode("ls -la")


def test_more_eos_ids_than_a_gguf_holds(folder: Path) -> None:
    change_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=[4, 2, 3, 0, 2]))
    done = convert(folder, quant="BF16", out=folder / "x.gguf")
    assert "a GGUF can store only three EOS tokens; '<|pad|>' will not end an answer" in done.warnings
    assert read_model_file(done.path).end_ids == (4, 2, 3)


def test_older_merges_as_strings(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    before = make_vocabulary(checkpoint, N_VOCAB).merges
    merges = [" ".join(pair) for pair in checkpoint.tokenizer["model"]["merges"]]
    change_json(folder / "tokenizer.json", lambda t: t["model"].update(merges=merges))
    assert make_vocabulary(open_checkpoint(folder), N_VOCAB).merges == before
