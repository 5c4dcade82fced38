"""A model's vocabulary in llama.cpp: text to token ids and back."""

import contextlib
import ctypes
import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import llama_cpp
from llguidance import LLTokenizer

from edge.errors import ModelFileError, PromptError
from edge.formats.gguf import read_model_file
from edge.llama import library
from edge.llama.thought_marks import find_marks

# Texts that may follow a forced text: with one of these a tokenizer shows that it merges across the end.
_PROBES = [chr(i).encode() for i in (0x09, 0x0A, *range(0x20, 0x7F))] + ["é".encode(), "한".encode()]
# Bytes: for a longer text edge checks the memory for llama.cpp's tokenizer. It took up to 140 bytes for each byte of a
# text, measured with one letter 10 million times.
_LONG = 1 << 20
# The signature of llama_tokenize, which llguidance calls.
_TOKENIZE = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_char),
    ctypes.c_int32,
    ctypes.POINTER(ctypes.c_int32),
    ctypes.c_int32,
    ctypes.c_bool,
    ctypes.c_bool,
)
_BYTES_FOR_BYTE = 150


class Vocabulary:
    """The tokens of one loaded model. `vocab` is llama.cpp's pointer, valid until the model is freed."""

    def __init__(self, vocab: llama_cpp.llama_vocab_p, end_ids: Iterable[int]) -> None:
        self._vocab = vocab
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(vocab)
        self.end_ids = frozenset(end_ids)  # the checkpoint's own EOS ids
        self._pieces: dict[int, bytes] = {}
        self._buffer = ctypes.create_string_buffer(256)
        self._matcher_tokens: LLTokenizer | None = None
        self._forced = lru_cache(maxsize=4096)(self._tokens_after)
        self._settled = lru_cache(maxsize=4096)(self._find_settled)
        self._tokenize: object = None  # called by matcher_tokens as long as these exist
        self._sorted: list[bytes] = []  # every token's bytes
        self._names: dict[str, int] | None = None  # the special tokens
        self._at_names = re.compile("(?!)")
        self.thought = find_marks(self.encode)
        # A message of gpt-oss also ends where a thought ends.
        ends = self.thought.closing_ids[:1] if self.thought is not None and self.thought.header else ()
        self.text_ends = self.end_ids | set(ends)

    def encode(self, text: str, *, special: bool = True, ends: bool = False) -> list[int]:
        """Token ids of `text`. `special`: read names such as `<|im_end|>` as their single token.

        `ends`: add the BOS and EOS that the file requires; a chat template writes its own. Raises PromptError if
        `text` is not valid Unicode, ContextError if there is too little memory.
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the prompt contains half of a surrogate pair at character {error.start}"
            ) from error
        return self._encode(data, special, ends)

    def _encode(self, data: bytes, special: bool, ends: bool) -> list[int]:
        if len(data) > _LONG:
            library.check_room(
                f"a text of {len(data):,} bytes: cannot be tokenized", len(data) * _BYTES_FOR_BYTE
            )
        size = len(data) + 8
        ids = (llama_cpp.llama_token * size)()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, size, ends, special)
        if n < 0:
            raise PromptError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(ids[:n])

    def piece(self, token: int) -> bytes:
        """The bytes of a token; empty for a special token, as in vLLM's text."""
        known = self._pieces.get(token)
        if known is None:
            buffer = self._buffer
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            if n < 0:
                buffer = ctypes.create_string_buffer(-n)
                n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            known = self._pieces[token] = ctypes.string_at(buffer, max(0, n))
        return known

    def spelling(self, token: int) -> bytes:
        """The bytes of a token; for a special token its name, such as `<think>`."""
        known = self.piece(token)
        if known:
            return known
        size = llama_cpp.llama_token_to_piece(self._vocab, token, None, 0, 0, True)
        buffer = ctypes.create_string_buffer(max(1, -size))
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        return ctypes.string_at(buffer, max(0, n))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of these tokens; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")

    def forced_tokens(self, last: int | None, text: bytes, *, whole: bool = False) -> list[int]:
        """The tokens that the model's own tokenizer writes for `text` after the token `last`.

        Tokens at the end that depend on the following text are omitted, so that the model chooses them; with `whole`
        nothing follows. The bytes of the result are always a beginning of `text`, which may be empty.
        """
        return list(self._forced(last, text, whole))

    def _tokens_after(self, last: int | None, text: bytes, whole: bool) -> tuple[int, ...]:
        before = b"" if last is None else self.piece(last).decode("utf-8", "ignore").encode()
        end = len(text) if whole else self._settled(text)
        # If the tokenizer merges `last` with the text, use the tokens of the text alone.
        way = self._split(before, text) if before else None
        tokens: list[int] = []
        for token in (self._alone(text) if way is None else way) if end else ():
            piece = self.piece(token)
            end -= len(piece)
            if end < 0 or not piece or not text.startswith(piece):
                break
            tokens.append(token)
            text = text[len(piece) :]
        return tuple(tokens)

    def _find_settled(self, text: bytes) -> int:
        """How many bytes of `text` become the same tokens, independent of what follows."""
        settled = len(text)
        usual: list[int] | None = None

        def narrow(probe: bytes) -> None:
            nonlocal settled, usual
            way = self._alone(text, probe)
            usual = way if usual is None else usual
            length = 0
            for one, other in zip(usual, way, strict=False):
                if one != other:
                    break
                length += len(self.piece(one))
            settled = min(settled, length)

        for probe in _PROBES:
            narrow(probe)
        # A longer token can cross the end even if no token crosses it with one more character: ` [{"`.
        if not self._sorted:
            self._sorted = sorted(self.piece(token) for token in range(self.n_vocab))
        for size in range(1, len(text) + 1):
            across = text[-size:]
            at = bisect_right(self._sorted, across)
            while settled > len(text) - size and at < self.n_vocab and self._sorted[at].startswith(across):
                narrow(self._sorted[at][size:].decode("utf-8", "ignore").encode())
                at += 1
        return settled

    def _alone(self, text: bytes, probe: bytes = b"") -> list[int]:
        """The tokens of `text` + `probe` if a token begins where the text begins; otherwise an empty list."""
        # A tokenizer that puts a blank before every text needs a text that separates the blank from it.
        for before in (b"", b"\n", b"a"):
            way = self._split(before, text, probe)
            if way is not None:
                return way
        return []

    def _split(self, before: bytes, text: bytes, probe: bytes = b"") -> list[int] | None:
        """The tokens of `text` + `probe` after `before`; None if a token crosses the beginning of `text`."""
        tokens = self._encode(before + text + probe, False, False)
        pieces = [self.piece(token) for token in tokens]
        length = len(before)
        if pieces and b"".join(pieces).startswith(b" " + before + text):
            length += 1  # the blank put before every text
        for i, piece in enumerate(pieces):
            if length <= 0:
                return tokens[i:] if length == 0 else None
            length -= len(piece)
        return [] if length == 0 else None

    def matcher_tokens(self) -> LLTokenizer:
        """The vocabulary in llguidance's form. It is made on first use, which takes up to a second.

        Raises ModelFileError if the model has no EOS token, or if llguidance cannot hold the vocabulary.
        """
        if self._matcher_tokens is None:
            if not self.end_ids:
                raise ModelFileError(
                    "the model's file names no EOS token, so no answer could end; convert it again"
                )
            self._matcher_tokens = self._make_matcher_tokens()
        return self._matcher_tokens

    def _make_matcher_tokens(self) -> LLTokenizer:
        spellings = [self.spelling(token) for token in range(self.n_vocab)]
        named = [self._is_named(token, spelling) for token, spelling in enumerate(spellings)]
        # A byte that no UTF-8 text has marks a token that no text spells.
        tokens = [b"\xff" * name + text for name, text in zip(named, spellings, strict=True)]
        self._tokenize = _TOKENIZE(_Plain(self._vocab, spellings, named))
        try:
            return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined,no-any-return]
                tokens=tokens,
                vocab_ptr=self._vocab,
                tokenize_fptr=ctypes.cast(self._tokenize, ctypes.c_void_p).value,
                eos_token=sorted(self.end_ids),
                slices=None,
            )
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ModelFileError(
                f"the model's vocabulary is damaged: llguidance cannot hold it: {reason}; convert it again"
            ) from None

    def _is_named(self, token: int, spelling: bytes) -> bool:
        """Whether the token stands for something beside its text: `<|im_end|>`, `<think>`."""
        kinds = llama_cpp.llama_vocab_get_attr(self._vocab, token)
        own = kinds & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        return bool(
            kinds & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
            or (own and spelling.startswith(b"<") and spelling.endswith(b">"))
        )

    def parts(self, text: str) -> list[str | int]:
        """The text, split at the names of special tokens, such as `<tool_call>`: texts, and the ids of the tokens."""
        if self._names is None:
            tokens = self.matcher_tokens()
            named = [token for token in range(self.n_vocab) if tokens.is_special_token(token)]
            names = {self.spelling(token).decode("utf-8", "replace"): token for token in named}
            self._names = {name: token for name, token in names.items() if len(name) > 2}
            longest_first = sorted(self._names, key=len, reverse=True)
            self._at_names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        found: list[str | int] = []
        end = 0
        for name in self._at_names.finditer(text):
            found += [text[end : name.start()]] if name.start() > end else []
            found.append(self._names[name[0]])
            end = name.end()
        return [*found, text[end:]] if text[end:] else found

    def prepare(self) -> None:
        """Do the work of the first constrained answer now: up to seconds with a vocabulary of 262,144.

        Raises ModelFileError as `matcher_tokens` does.
        """
        self.matcher_tokens()
        self.forced_tokens(None, b'"plan":')


class _Plain:
    """llama_tokenize for llguidance, without the tokens that have a name, such as `<think>`.

    llama.cpp writes a user-defined token for its name also where special tokens are off. In a constrained answer the
    matcher refuses such a token, so the name is spelled in other tokens. This runs in several threads.
    """

    def __init__(
        self, vocab: llama_cpp.llama_vocab_p, spellings: Sequence[bytes], named: Sequence[bool]
    ) -> None:
        self._vocab = vocab
        self._spellings = spellings
        self._named = named
        names = sorted((text for text, name in zip(spellings, named, strict=True) if name and len(text) > 1))
        # After the first byte of each name; the look-ahead finds names that overlap.
        self._cuts = re.compile(
            b"|".join(re.escape(text[:1]) + b"(?=" + re.escape(text[1:]) + b")" for text in names)
        )
        self._usual = {text: token for token, text in enumerate(spellings) if text and not named[token]}
        self._longest = max(map(len, self._usual), default=1)

    def __call__(
        self, _vocab: int, data: object, size: int, ids: object, room: int, add_special: bool, special: bool
    ) -> int:
        """As llama_tokenize: the number of tokens, or its negative if they do not fit into `room`."""
        text = ctypes.string_at(data, size)  # type: ignore[arg-type]
        tokens = self._encode(text, add_special, special)
        if not special and any(self._named[token] for token in tokens):
            tokens = self._spelled(text)
        if len(tokens) > room:
            return -len(tokens)
        for i, token in enumerate(tokens):
            ids[i] = token  # type: ignore[index]
        return len(tokens)

    def _encode(self, text: bytes, add_special: bool = False, special: bool = False) -> list[int]:
        size = len(text) + 8
        ids = (llama_cpp.llama_token * size)()
        count = llama_cpp.llama_tokenize(self._vocab, text, len(text), ids, size, add_special, special)
        return list(ids[: max(0, count)])

    def _spelled(self, text: bytes) -> list[int]:
        ends = [found.end() for found in self._cuts.finditer(text)]
        tokens: list[int] = []
        for begin, end in itertools.pairwise([0, *ends, len(text)]):
            part = text[begin:end]
            way = self._encode(part)
            right = not any(self._named[token] for token in way)
            right = right and b"".join(self._spellings[token] for token in way) == part
            tokens += way if right else self._greedy(part)
        return tokens

    def _greedy(self, text: bytes) -> list[int]:
        """The longest token at each place; bytes without a token are left out."""
        tokens: list[int] = []
        at = 0
        while at < len(text):
            sizes = range(min(self._longest, len(text) - at), 0, -1)
            size = next((size for size in sizes if text[at : at + size] in self._usual), 0)
            if size:
                tokens.append(self._usual[text[at : at + size]])
            at += size or 1
        return tokens


@contextlib.contextmanager
def file_vocabulary(path: Path, *, trusted: bool = False) -> Iterator[Vocabulary]:
    """The vocabulary of a GGUF without its weights, to encode and decode text. `trusted`: see `library.load_model`.

    Raises ModelFileError.
    """
    end_ids = read_model_file(path).end_ids  # edge checks the file before llama.cpp reads it
    library.start()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = library.load_model(path, params, trusted=trusted)
    try:
        yield Vocabulary(llama_cpp.llama_model_get_vocab(model), end_ids)
    finally:
        llama_cpp.llama_model_free(model)
