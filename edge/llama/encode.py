"""Texts to token ids by a model's own tokenizer, without its weights.

llama.cpp reads the tokenizer of a GGUF, the package `tokenizers` that of a checkpoint folder. llama.cpp is imported
only for a GGUF, so a machine that only serves a checkpoint does not need it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import Tokenizer

from edge.errors import PromptError


@contextlib.contextmanager
def encoder(model: Path) -> Iterator[Callable[[str], list[int]]]:
    """A function from text to token ids. It adds no BOS, because the chat template writes it.

    Raises ModelFileError or PromptError.
    """
    if model.is_dir():
        yield _folder_encoder(model / "tokenizer.json")
        return
    from edge.llama.vocabulary import file_vocabulary

    with file_vocabulary(model) as vocabulary:
        yield vocabulary.encode


def encode_with(model: Path, text: str) -> list[int]:
    """Token ids of one text. Raises ModelFileError or PromptError."""
    with encoder(model) as encode:
        return encode(text)


def _folder_encoder(file: Path) -> Callable[[str], list[int]]:
    def one_line(error: Exception) -> PromptError:
        return PromptError(f"{file}: cannot be read as a tokenizer: {' '.join(str(error).split())}")

    try:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()  # a file may set both, to any size; prompts have neither
        tokenizer.no_truncation()
    except Exception as error:  # the package raises bare Exceptions
        raise one_line(error) from None

    def encode(text: str) -> list[int]:
        try:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        except Exception as error:
            raise one_line(error) from None

    return encode
