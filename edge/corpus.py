"""What a calibration or a measurement reads: replay rows or a text as token sequences, and in which batches.

The sequences of rows make up a prefix tree. They are read in an order that finishes a branch before the next, each
from where it parts from the one before it, so that every node of the tree is read once. The batches end wherever
sequences part, and otherwise depend on nothing but the sequences: what is read again after an interruption is read
in the same batches.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from edge.errors import ContextError, ReplayError
from edge.footprint import BATCH
from edge.journal import rows_sha256
from edge.modelfile import ModelFile
from edge.prompt import CHAT_TEMPLATE, prompt_source, render_prompt
from edge.replay import read_rows
from edge.tokens import file_vocabulary
from edge.tree import common_length, reading_order


@dataclass(frozen=True)
class Corpus:
    """Token sequences in the order in which they are read. `shared[i]`: tokens that i + 1 begins with as i does.

    `kind`: "rows" or "text". `sha256` is that of the data, `skipped` counts rows that were left out, `batch` is the
    most tokens that are read at once.
    """

    kind: str
    path: Path
    sha256: str
    sequences: list[list[int]]
    shared: list[int]
    skipped: int = 0
    notes: tuple[str, ...] = ()
    batch: int = BATCH

    def seen(self, index: int) -> int:
        """How many tokens of a sequence were read with the ones before it."""
        return self.shared[index - 1] if index else 0

    def tokens_until(self, index: int) -> int:
        """The tokens that count in the first so many sequences."""
        return sum(len(self.sequences[i]) - self.seen(i) for i in range(index))

    @property
    def tokens(self) -> int:
        return self.tokens_until(len(self.sequences))

    def stops(self, index: int) -> list[int]:
        """The lengths, ascending, at which a sequence is held because a later one parts there."""
        lengths, least = list[int](), len(self.sequences[index]) + 1
        for length in self.shared[index:]:
            if length < least:
                lengths.append(least := length)
            if length <= self.seen(index):
                break
        return sorted(length for length in lengths if length > self.seen(index))

    def batches(self, index: int) -> list[tuple[int, int]]:
        """The (begin, end) of each batch of what is new in a sequence. They depend on nothing but the sequences."""
        edges = [self.seen(index), *self.stops(index), len(self.sequences[index])]
        return [
            (begin, min(begin + self.batch, end))
            for start, end in pairwise(edges)
            for begin in range(start, end, self.batch)
        ]

    def way(self, index: int) -> list[tuple[int, int]]:
        """The batches in which the sequences before have read what this one shares with them."""
        end, batches = self.seen(index), list[tuple[int, int]]()
        for i in range(index - 1, -1, -1):
            if self.seen(i) < end:
                batches = [part for part in self.batches(i) if part[1] <= end] + batches
                end = self.seen(i)
        return batches


def from_rows(file: ModelFile, path: Path, context: int | None) -> Corpus:
    """Each row's prompt, by the model's chat template, and its reference answer; those up to `context` tokens long.

    `context` is the model's own where it is None. Raises ReplayError, PromptError, ContextError.
    """
    rows = read_rows(path)
    source = prompt_source(file.path)
    rendered = [render_prompt(row.messages, source) for row in rows]
    with file_vocabulary(file.path) as vocabulary:
        # One text, as the next step's prompt holds it; what ends the answer is written, never read.
        given = [
            vocabulary.encode(prompt.text + row.ref_raw) for prompt, row in zip(rendered, rows, strict=True)
        ]
    limit = context or file.context_length
    if limit > file.context_length:
        raise ContextError(f"{file.path}: has a context of {file.context_length} tokens, not {limit}")
    fitting = [tokens for tokens in given if 0 < len(tokens) <= limit]
    if not fitting:
        raise ContextError(f"{path}: no row fits into a context of {limit} tokens")
    notes = []
    if len(fitting) < len(rows):
        longest = max(map(len, given))
        notes.append(
            f"{len(rows) - len(fitting)} of {len(rows)} rows are longer than the context of {limit} tokens "
            f"(the longest has {longest:,}) and were left out"
        )
    fallbacks = [prompt for prompt in rendered if prompt.status != CHAT_TEMPLATE]
    if fallbacks:
        notes.append(
            f"{len(fallbacks)} of {len(rows)} prompts were written by {fallbacks[0].status}, not by the model's "
            "own chat template"
        )
    ordered = [fitting[i] for i in reading_order(fitting)]
    shared = [common_length(a, b) for a, b in pairwise(ordered)]
    skipped = len(rows) - len(fitting)
    return Corpus("rows", path, rows_sha256(rows), ordered, shared, skipped, tuple(notes))


def from_text(file: ModelFile, path: Path, chunk: int) -> Corpus:
    """As llama-imatrix cuts a text: special tokens not parsed, the rest behind the last whole chunk left out, and
    each chunk's first token replaced by the BOS where the vocabulary asks for one. Raises ReplayError, ContextError.
    """
    try:
        data = path.read_bytes()
        content = data.removesuffix(b"\n").decode("utf-8")
    except OSError as error:
        raise ReplayError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ReplayError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    if chunk > file.context_length:
        raise ContextError(
            f"{file.path}: has a context of {file.context_length} tokens; a chunk of {chunk} does not fit"
        )
    with file_vocabulary(file.path) as vocabulary:
        tokens = vocabulary.encode(content, special=False, ends=True)
        bos = vocabulary.encode("", ends=True)[:1]
        if bos != tokens[:1] or bos[0] in file.end_ids:
            bos = []
    count = len(tokens) // chunk
    if count < 2:
        raise ReplayError(
            f"{path}: has {len(tokens):,} tokens; at least two chunks of {chunk} are needed: give a longer text "
            "or a smaller chunk"
        )
    chunks = [tokens[i * chunk : (i + 1) * chunk] for i in range(count)]
    if bos:
        chunks = [[*bos, *part[1:]] for part in chunks]
    return Corpus("text", path, hashlib.sha256(data).hexdigest(), chunks, [0] * (count - 1))
