"""What a calibration or a measurement reads: replay rows or a text as token sequences, and in which batches.

The sequences of rows make up a prefix tree. They are read in an order that finishes a branch before the next, each
from where it parts from the one before it, so that every node of the tree is read once. The batches end wherever
sequences part, and otherwise depend on nothing but the sequences: what is read again after an interruption is read
in the same batches.
"""

import hashlib
from itertools import pairwise
from pathlib import Path

from edge.errors import ContextError, ReplayError
from edge.formats.gguf import ModelFile
from edge.llama.prefixes import Corpus, common_length, reading_order
from edge.llama.vocabulary import file_vocabulary
from edge.prompt import CHAT_TEMPLATE, prompt_source, render_prompt
from edge.replay.rows import read_rows, rows_sha256


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
