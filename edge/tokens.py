"""A model's vocabulary as llama.cpp has it: text to token ids and back."""

import contextlib
import ctypes
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import llama_cpp
from llguidance import LLTokenizer
from llguidance.llamacpp import lltokenizer_from_vocab
from tokenizers import Tokenizer

from edge import llama
from edge.errors import ModelFileError, PromptError
from edge.modelfile import read_model_file


class Vocabulary:
    """The tokens of one loaded model. `vocab` is llama.cpp's pointer, valid while the model lives."""

    def __init__(self, vocab: llama_cpp.llama_vocab_p, end_ids: Iterable[int]) -> None:
        self._vocab = vocab
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(vocab)
        self.end_ids = frozenset(end_ids)  # the checkpoint's own EOS ids
        self._pieces: dict[int, bytes] = {}
        self._matcher_tokens: LLTokenizer | None = None
        self.think_open = self._single("<think>")
        self.think_close = self._single("</think>")
        if self.think_open is None or self.think_close is None:
            self.think_open = self.think_close = None

    def encode(self, text: str, *, special: bool = True, ends: bool = False) -> list[int]:
        """Token ids of `text`; `special` reads names such as `<|im_end|>` as their single token.

        `ends` adds the BOS and EOS that the file asks for; a prompt's template has written its own.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the prompt holds half of a surrogate pair at character {error.start}"
            ) from error
        size = len(data) + 8
        ids = (llama_cpp.llama_token * size)()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, size, ends, special)
        if n < 0:
            raise PromptError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(ids[:n])

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a special token, as in vLLM's text."""
        known = self._pieces.get(token)
        if known is None:
            buffer = ctypes.create_string_buffer(1024)
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, 1024, 0, False)
            if n < 0:
                buffer = ctypes.create_string_buffer(-n)
                n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, -n, 0, False)
            known = self._pieces[token] = buffer.raw[: max(0, n)]
        return known

    def text(self, tokens: Sequence[int]) -> str:
        """The text of these tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")

    def matcher_tokens(self) -> LLTokenizer:
        """The vocabulary in llguidance's form; made on first use, since it takes up to a second.

        Raises ModelFileError: no token ends an answer, or llguidance cannot hold the vocabulary.
        """
        if self._matcher_tokens is None:
            if not self.end_ids:
                raise ModelFileError(
                    "the model's file names no EOS token, so that no answer could end; convert it again"
                )
            with warnings.catch_warnings():  # llguidance still calls a name that llama.cpp has renamed
                warnings.simplefilter("ignore", DeprecationWarning)
                try:
                    self._matcher_tokens = lltokenizer_from_vocab(self._vocab, eos_token=sorted(self.end_ids))
                except ValueError as error:
                    reason = " ".join(str(error).split())
                    raise ModelFileError(
                        f"the model's vocabulary is damaged: llguidance cannot hold it: {reason}; convert it again"
                    ) from None
        return self._matcher_tokens

    def _single(self, text: str) -> int | None:
        ids = self.encode(text)
        return ids[0] if len(ids) == 1 else None


def encode_with(model: Path, text: str) -> list[int]:
    """Token ids of `text`, no BOS added: llama.cpp's for a GGUF, the `tokenizers` package's for a checkpoint folder.

    Raises ModelFileError or PromptError.
    """
    if model.is_dir():
        file = model / "tokenizer.json"
        try:
            return list(Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids)
        except Exception as error:  # the package raises bare Exceptions
            raise PromptError(
                f"{file}: cannot be read as a tokenizer: {' '.join(str(error).split())}"
            ) from None
    with file_vocabulary(model) as vocabulary:
        return vocabulary.encode(text)


@contextlib.contextmanager
def file_vocabulary(path: Path) -> Iterator[Vocabulary]:
    """A GGUF's vocabulary without its weights, for encoding and decoding. Raises ModelFileError."""
    end_ids = read_model_file(path).end_ids  # llama.cpp must not be the first to see a damaged file
    llama.start()
    llama.forget_errors()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelFileError(f"{path}: llama.cpp cannot read its vocabulary: {llama.last_error()}")
    try:
        yield Vocabulary(llama_cpp.llama_model_get_vocab(model), end_ids)
    finally:
        llama_cpp.llama_model_free(model)
