"""The vocabularies of published models that llama.cpp tests with: Llama 2 and 3, Qwen2, Gemma 4.

`qwen35` is Qwen2's vocabulary with the regex of Qwen3.5.

    pytest tests/conversion/test_published_vocabularies.py

Each has its tokens and merges in a GGUF, and the tokens of 50 texts as the model's own tokenizer gave them. A
tokenizer.json with these tokens, and the family's other steps, must become the same vocabulary again. The files are in
the sdist of llama-cpp-python in build/sdist, where `make test` puts it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from llama_cpp_sources import MISSING, SDIST, write_sources
from make_tokenizers import QWEN2_REGEX, QWEN35_REGEX, split
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers.tokenization_utils_base import generate_merges

from edge.conversion.tokenizer import make_vocabulary
from edge.formats.checkpoint import open_checkpoint
from edge.formats.gguf import read_array, read_metadata

LLAMA3_REGEX = QWEN2_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
REGEXES = {"llama-bpe": LLAMA3_REGEX, "qwen2": QWEN2_REGEX, "qwen35": QWEN35_REGEX}
SEPARATOR = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    if not SDIST.is_file():
        pytest.skip(MISSING)
    write_sources(folder, lambda path: path.startswith("models/ggml-vocab-"))
    return folder / "models"


def tokenizer_json(path: Path, name: str) -> Tokenizer:
    """A tokenizer with the tokens and merges of a GGUF and the steps of its family."""
    texts = [text.decode("utf-8") for text in read_array(path, "tokenizer.ggml.tokens")]
    kinds = read_array(path, "tokenizer.ggml.token_type")
    pads = {text for text, kind in zip(texts, kinds, strict=True) if kind == 4 and text.startswith("[PAD")}
    merges = [tuple(pair.decode().split(" ", 1)) for pair in read_array(path, "tokenizer.ggml.merges")]
    vocab = {text: i for i, text in enumerate(texts) if text not in pads}
    if name in REGEXES:
        special = {text for text, kind in zip(texts, kinds, strict=True) if kind == TokenType.CONTROL}
        model = BPE(
            {t: i for t, i in vocab.items() if t not in special}, merges, ignore_merges=name == "llama-bpe"
        )
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = split(REGEXES[name])
    else:
        if not merges:
            scores = read_array(path, "tokenizer.ggml.scores")
            ranks = {t: s for t, s, k in zip(texts, scores, kinds, strict=True) if k == TokenType.NORMAL}
            merges = [pair for pair in generate_merges(vocab, ranks) if "".join(pair) in ranks]
        tokenizer = Tokenizer(BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        replace = normalizers.Replace(" ", "▁")
        if name == "gemma-4":
            tokenizer.normalizer = replace
            tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        else:
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    for text, kind in zip(texts, kinds, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED) and text not in pads:
            own = AddedToken(text, special=kind != TokenType.USER_DEFINED, normalized=False)
            (tokenizer.add_tokens if kind == TokenType.USER_DEFINED else tokenizer.add_special_tokens)([own])
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "qwen2", "qwen35", "gemma-4"])
def test_a_published_vocabulary(
    name: str, published: Path, random_llama_folder: Path, tmp_path: Path
) -> None:
    path = published / f"ggml-vocab-{name}.gguf"
    folder = Path(shutil.copytree(random_llama_folder, tmp_path / "model"))
    tokenizer = tokenizer_json(path, name)
    tokenizer.save(str(folder / "tokenizer.json"))
    metadata, texts = (
        read_metadata(path),
        [t.decode("utf-8") for t in read_array(path, "tokenizer.ggml.tokens")],
    )
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}
    settings: dict[str, Any] = {
        f"{ours}_token": texts[int(number)]  # type: ignore[call-overload]
        for ours, theirs in names.items()
        if (number := metadata.get(f"tokenizer.ggml.{theirs}_token_id")) is not None
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if name == "gemma-4":  # edge decides by the architecture
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma4ForCausalLM"]}))
    checkpoint = open_checkpoint(folder)
    found = make_vocabulary(checkpoint, len(texts))
    wrong = [(a, b) for a, b in zip(found.tokens, texts, strict=True) if a != b and not b.startswith("[PAD")]
    assert not wrong
    kinds = read_array(path, "tokenizer.ggml.token_type")
    real = [i for i, text in enumerate(texts) if not text.startswith("[PAD")]
    others = [(texts[i], found.types[i], kinds[i]) for i in real if found.types[i] != kinds[i]]
    assert [one for one in others if one[0] != "<unk>"] == []  # edge marks it as control, as it does for all
    merges = [pair.decode() for pair in read_array(path, "tokenizer.ggml.merges")]
    assert found.merges == merges
    assert found.model == metadata["tokenizer.ggml.model"]
    assert found.pre in (metadata.get("tokenizer.ggml.pre"), None)
    # llama.cpp tests itself with these texts and this file; here, the tokenizer that edge compares with.
    inputs = (path.with_suffix(".gguf.inp")).read_text("utf-8").split(SEPARATOR)
    golden = (path.with_suffix(".gguf.out")).read_text("utf-8").split("\n")
    assert len(inputs) > 40
    for text, line in zip(inputs, golden, strict=False):
        assert found.tokenizer.encode(text, add_special_tokens=False).ids == [int(i) for i in line.split()], (
            text
        )
