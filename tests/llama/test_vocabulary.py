"""The vocabulary of a GGUF in llama.cpp: text to ids and back, and the errors of damaged files.

pytest tests/llama/test_vocabulary.py
"""

from pathlib import Path

import pytest
from conftest import converted
from tokenizers import Tokenizer

from edge.errors import ModelFileError, PromptError
from edge.formats.checksum import KEY
from edge.llama.encode import encode_with
from edge.llama.engine import Engine
from edge.llama.loading import Loading
from edge.llama.vocabulary import file_vocabulary


@pytest.fixture(scope="module")
def model(random_llama_folder: Path) -> Path:
    return converted(random_llama_folder, "llama-BF16.gguf", "BF16")


def test_encodes_as_the_checkpoint_does(model: Path, random_llama_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(random_llama_folder / "tokenizer.json"))
    for text in ("", "ls -la | head\n", "<|im_start|>user\né 터미널<|im_end|>"):
        wanted = tokenizer.encode(text, add_special_tokens=False).ids
        assert encode_with(model, text) == encode_with(random_llama_folder, text) == wanted
        with file_vocabulary(model) as vocabulary:
            assert vocabulary.encode(text, ends=True) == tokenizer.encode(text).ids
            shown = text.replace("<|im_start|>", "").replace("<|im_end|>", "")
            assert vocabulary.text(vocabulary.encode(text)) == shown
            assert vocabulary.encode(text, special=False) == wanted or "<|" in text
    with pytest.raises(PromptError, match="half of a surrogate pair at character 2"):
        encode_with(model, "ab\ud83d")


def test_without_an_eos_no_answer_could_end(model: Path, tmp_path: Path) -> None:
    """Its prompts can still be encoded."""
    path = tmp_path / "x.gguf"
    path.write_bytes(
        model.read_bytes()
        .replace(b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.not_token_id")
        .replace(KEY.encode(), b"other.sums")
    )
    with file_vocabulary(path) as vocabulary:
        assert vocabulary.encode("ls") == encode_with(model, "ls")
        assert not vocabulary.end_ids
        with pytest.raises(ModelFileError, match="names no EOS token, so no answer could end"):
            vocabulary.matcher_tokens()
    with file_vocabulary(model) as vocabulary:
        assert vocabulary.matcher_tokens().eos_token in vocabulary.end_ids


def test_the_first_error_is_named(model: Path, tmp_path: Path) -> None:
    """llama.cpp logs the cause, then that it failed to load the model."""
    data = bytearray(model.read_bytes().replace(KEY.encode(), b"other.sums"))
    at = data.index(b"llama.attention.head_count_kv") + len(b"llama.attention.head_count_kv") + 4
    assert int.from_bytes(data[at : at + 4], "little") == 2
    data[at] = 1
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    for _ in range(2):  # nor is it remembered from one call to the next
        with pytest.raises(ModelFileError, match="wrong shape") as caught:
            Engine(path, Loading(threads=1))
        assert "\n" not in str(caught.value)
    at = data.index(b"tokenizer.ggml.pre") + len(b"tokenizer.ggml.pre") + 4 + 8
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="unknown pre-tokenizer type"):
        encode_with(path, "ls")
