"""What a measurement reads and where it looks: reference answers behind their prompts, or a text in chunks.

Rows: the prompt, rendered with the model's chat template, then the reference's tokens, given and not chosen ("teacher
forcing"). Each token of the answer is a position, and so is its end: what must come there is any token that ends an
answer. All sequences make up a prefix tree; a position is a node of it and what comes next, so that a node which
several rows share is read and compared once.

Text: cut as llama-perplexity cuts it (tools/perplexity/perplexity.cpp): chunks of `chunk` tokens, special tokens not
parsed, what remains behind the last whole chunk left out, each chunk's first token replaced by the BOS where the
vocabulary asks for one, each read in an empty cache. Predicted are the tokens at chunk // 2 + 1 up to the last one of a
chunk; the logits after the last token are not used.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import ContextError, PromptError
from edge.formats.gguf import ModelFile
from edge.llama.memory import BATCH
from edge.llama.prefixes import Corpus, common_length, reading_order
from edge.llama.vocabulary import Vocabulary, file_vocabulary
from edge.measure.corpus import from_text
from edge.measure.spans import token_fields
from edge.metrics import bucket
from edge.prompt import CHAT_TEMPLATE, prompt_source, render_prompt
from edge.replay.rows import Key, describe, read_rows, row_sha256, rows_sha256
from edge.system.hashes import text_sha256

END = -1
"""The target of a position where the answer ends: any of the tokens that end one."""


@dataclass(frozen=True)
class Scored:
    """One row or chunk. `nodes[i]` is the node after which position i is predicted, `slots[i]` its place among all
    pairs of a node and a target. `fields` and `command` as of spans.token_fields; None where they are not known.
    """

    key: Key
    source_group: str
    bucket: str
    nodes: NDArray[np.int64]
    slots: NDArray[np.int64]
    fields: tuple[str, ...] | None = None
    command: range | None = None
    row_sha256: str | None = None
    prompt_sha256: str | None = None
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class Plan:
    """The sequences in reading order, and the nodes to look at, numbered in that order.

    `wanted[i]`: the tokens of sequence i, ascending, that are such nodes and were not read with an earlier sequence.
    `targets[node]`: what comes next there, by the rows that pass it. `notes`: what to tell the user.
    """

    corpus: Corpus
    wanted: list[list[int]]
    targets: list[tuple[int, ...]]
    rows: list[Scored]
    chunk: int | None

    @cached_property
    def sha256(self) -> str:
        """Of all that is read and looked at."""
        digest = hashlib.sha256(json.dumps([self.corpus.kind, self.chunk]).encode())
        for tokens, wanted in zip(self.corpus.sequences, self.wanted, strict=True):
            digest.update(json.dumps([tokens, wanted]).encode())
        digest.update(json.dumps(self.targets).encode())
        return digest.hexdigest()


def rows_plan(
    file: ModelFile,
    path: Path,
    *,
    context: int | None = None,
    limit: int | None = None,
    skip_too_long: bool = False,
    batch: int = BATCH,
) -> Plan:
    """Plan the rows of a file, the first `limit` of them, up to `context` tokens each with their answers.

    `context` is the model's own where it is None. A longer row is refused, or left out with `skip_too_long`.
    Raises ReplayError, PromptError, ContextError, ModelFileError.
    """
    rows = read_rows(path, limit)
    source = prompt_source(file.path)
    rendered = [render_prompt(row.messages, source) for row in rows]
    most = context or file.context_length
    if most > file.context_length:
        raise ContextError(f"{file.path}: has a context of {file.context_length} tokens, not {most}")
    scored, sequences, targets = list[Scored](), list[list[int]](), list[list[int]]()
    odd = 0
    with file_vocabulary(file.path) as vocabulary:
        for row, prompt in zip(rows, rendered, strict=True):
            before, answer = _forced(vocabulary, prompt.text, row.ref_raw)
            if not before:
                raise PromptError(
                    f"{path}: {describe(row.key)} has an empty prompt: nothing predicts its answer"
                )
            if len(before) + len(answer) > most:
                if skip_too_long:
                    continue
                raise ContextError(
                    f"{path}: {describe(row.key)} has {len(before) + len(answer)} tokens with its reference, which do "
                    f"not fit into {most} (--skip-too-long leaves such rows out)"
                )
            pieces = [vocabulary.spelling(token) for token in answer]
            known = b"".join(pieces) == row.ref_raw.encode("utf-8")
            odd += not known
            fields, command = token_fields(row.ref_raw, pieces) if known else (None, None)
            ended = [END] if vocabulary.end_ids else []
            if fields is not None and ended:
                fields.append("structure")
            sequences.append(before + answer)
            targets.append([*answer, *ended])
            scored.append(
                Scored(
                    row.key,
                    row.source_group,
                    bucket(row.step_idx),
                    np.arange(len(before) - 1, len(before) - 1 + len(targets[-1])),  # replaced by _planned
                    np.empty(0, np.int64),
                    None if fields is None else tuple(fields),
                    command,
                    row_sha256(row),
                    text_sha256(prompt.text),
                    len(before),
                )
            )
    if not scored:
        raise ContextError(f"{path}: no row fits into a context of {most} tokens")
    notes = []
    if len(scored) < len(rows):
        notes.append(
            f"{len(rows) - len(scored)} of {len(rows)} rows are longer than the context of {most} tokens and were left "
            "out"
        )
    fallbacks = [prompt for prompt in rendered if prompt.status != CHAT_TEMPLATE]
    if fallbacks:
        notes.append(
            f"{len(fallbacks)} of {len(rows)} prompts were written by {fallbacks[0].status}, not by the model's "
            "own chat template"
        )
    if odd:
        notes.append(
            f"{odd} of {len(rows)} answers are another text in the model's tokens: without fields and first command"
        )
    kept = {item.key for item in scored}
    sha256 = rows_sha256(row for row in rows if row.key in kept)
    return _planned("rows", path, sha256, sequences, targets, scored, len(rows) - len(scored), notes, batch)


def text_plan(
    file: ModelFile, path: Path, chunk: int, *, limit: int | None = None, batch: int = BATCH
) -> Plan:
    """Plan a text, the first `limit` chunks of it. Raises ReplayError, ContextError, ModelFileError."""
    if chunk < 4:
        raise ContextError(f"a chunk of {chunk} tokens: it must have at least 4")
    corpus = from_text(file, path, chunk)
    sequences = corpus.sequences[:limit]
    corpus = replace(corpus, sequences=sequences, shared=corpus.shared[: len(sequences) - 1], batch=batch)
    first, rows, targets = chunk // 2, list[Scored](), list[tuple[int, ...]]()
    for i, tokens in enumerate(corpus.sequences):
        nodes = np.arange(len(targets), len(targets) + chunk - 1 - first)
        targets += [(token,) for token in tokens[first + 1 :]]
        rows.append(Scored((f"chunk-{i:05d}", 0, 0), "text", "text", nodes, nodes))
    return Plan(corpus, [list(range(first, chunk - 1))] * len(rows), targets, rows, chunk)


def _forced(vocabulary: Vocabulary, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt as a run has them, and of the answer behind it.

    Where a tokenizer would merge the two, the answer is cut on its own: what is generated begins behind the prompt.
    """
    before, both = vocabulary.encode(prompt), vocabulary.encode(prompt + answer)
    if both[: len(before)] == before:
        return before, both[len(before) :]
    return before, vocabulary.encode(answer)


def _planned(
    kind: str,
    path: Path,
    sha256: str,
    sequences: Sequence[list[int]],
    targets: Sequence[list[int]],
    scored: Sequence[Scored],
    skipped: int,
    notes: Sequence[str],
    batch: int,
) -> Plan:
    """Number the nodes. Of each scored row, `nodes` are still the places in its own sequence."""
    order = reading_order(sequences)
    ordered = [sequences[i] for i in order]
    shared = [common_length(a, b) for a, b in pairwise(ordered)]
    corpus = Corpus(kind, path, sha256, ordered, shared, skipped, tuple(notes), batch)
    nodes_of: dict[int, NDArray[np.int64]] = {}
    last, count = np.empty(0, np.int64), 0
    for index, i in enumerate(order):
        new = len(sequences[i]) - corpus.seen(index)
        last = np.concatenate([last[: corpus.seen(index)], np.arange(count, count + new)])
        nodes_of[i] = last
        count += new
    next_by_node: dict[int, list[int]] = {}
    for i, item in enumerate(scored):
        for node, target in zip(nodes_of[i][item.nodes].tolist(), targets[i], strict=True):
            known = next_by_node.setdefault(node, [])
            if target not in known:
                known.append(target)
    numbers = {node: number for number, node in enumerate(sorted(next_by_node))}
    all_targets = [tuple(next_by_node[node]) for node in numbers]
    begins = np.concatenate([[0], np.cumsum([len(some) for some in all_targets])])
    wanted = list[list[int]]()
    for index, i in enumerate(order):
        own = nodes_of[i][corpus.seen(index) :].tolist()
        wanted.append([place for place, node in enumerate(own, corpus.seen(index)) if node in numbers])
    rows = []
    for i, item in enumerate(scored):
        at = [numbers[node] for node in nodes_of[i][item.nodes].tolist()]
        slots = [begins[n] + all_targets[n].index(target) for n, target in zip(at, targets[i], strict=True)]
        rows.append(replace(item, nodes=np.array(at, np.int64), slots=np.array(slots, np.int64)))
    return Plan(corpus, wanted, all_targets, rows, None)
