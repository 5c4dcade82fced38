"""The token sequences that a calibration or a measurement reads, from replay rows or from a text.

The sequences of rows form a prefix tree. They are read in an order that finishes one branch before the next. Each
sequence is read from the token where it differs from the one before it, so every node of the tree is read once.
Batches end where sequences part, and depend on nothing but the sequences. So after an interruption, a node is read in
the same batch as before.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from edge.errors import ContextError, ReplayError
from edge.formats.gguf import ModelFile
from edge.llama.prefixes import Corpus, common_length, reading_order
from edge.llama.vocabulary import file_vocabulary
from edge.prompt import CHAT_TEMPLATE, Rendered, prompt_source, render_prompt
from edge.replay.check import reference_notes
from edge.replay.rows import Row, read_rows, rows_sha256


def from_rows(file: ModelFile, path: Path, context: int | None) -> Corpus:
    """One sequence for each row: its prompt, rendered with the model's chat template, and its reference answer.

    Rows of more than `context` tokens are left out, with a note; None is the model's context length. Raises
    ReplayError, PromptError, ContextError.
    """
    rows = read_rows(path)
    prompts = rendered_prompts(file, rows)
    with file_vocabulary(file.path) as vocabulary:
        # Prompt and answer are tokenized as one text, as in the next step's prompt. The token that ends the answer is
        # left out: a model writes it and never reads it.
        given = [
            vocabulary.encode(prompt.text + row.ref_raw) for prompt, row in zip(prompts, rows, strict=True)
        ]
    limit = context_limit(file, context)
    fitting = [tokens for tokens in given if 0 < len(tokens) <= limit]
    if not fitting:
        raise ContextError(f"{path}: no row fits into a context of {limit} tokens")
    skipped = len(rows) - len(fitting)
    notes = []
    if skipped:
        notes.append(
            f"{skipped} of {len(rows)} rows are longer than the context of {limit} tokens "
            f"(the longest has {max(map(len, given)):,}) and were left out"
        )
    notes += fallback_notes(prompts) + reference_notes(path, rows, scored=False)
    ordered = [fitting[i] for i in reading_order(fitting)]
    shared = [common_length(a, b) for a, b in pairwise(ordered)]
    return Corpus("rows", path, rows_sha256(rows), ordered, shared, skipped, tuple(notes))


def from_text(file: ModelFile, path: Path, chunk: int) -> Corpus:
    """One sequence for each chunk of a text, cut as llama-imatrix does.

    Special tokens are not parsed. Tokens after the last whole chunk are left out. Where the vocabulary asks for a BOS
    token, it replaces the first token of each chunk. Raises ReplayError, ContextError.
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
            f"{path}: has {len(tokens):,} tokens; edge needs at least two chunks of {chunk}: give a longer text or a "
            "smaller --chunk"
        )
    chunks = [tokens[i * chunk : (i + 1) * chunk] for i in range(count)]
    if bos:
        chunks = [[*bos, *part[1:]] for part in chunks]
    return Corpus("text", path, hashlib.sha256(data).hexdigest(), chunks, [0] * (count - 1))


def rendered_prompts(file: ModelFile, rows: Sequence[Row]) -> list[Rendered]:
    """The prompts of rows, rendered with the model's chat template. Raises PromptError."""
    source = prompt_source(file.path)
    return [render_prompt(row.messages, source) for row in rows]


def context_limit(file: ModelFile, context: int | None) -> int:
    """The context length to use: `context`, or the model's if it is None. Raises ContextError if it is too long."""
    limit = context or file.context_length
    if limit > file.context_length:
        raise ContextError(f"{file.path}: has a context of {file.context_length} tokens, not {limit}")
    return limit


def fallback_notes(prompts: Sequence[Rendered]) -> list[str]:
    """A note if some prompts were not rendered with the model's own chat template."""
    fallbacks = [prompt for prompt in prompts if prompt.status != CHAT_TEMPLATE]
    if not fallbacks:
        return []
    return [
        f"{len(fallbacks)} of {len(prompts)} prompts were written by {fallbacks[0].status}, not by the model's "
        "own chat template"
    ]
