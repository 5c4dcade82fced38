"""What a measurement reads and where it looks: reference answers after their prompts, or a text in chunks.

Rows: the prompt, rendered with the model's chat template, and then the tokens of the reference answer (teacher
forcing). Each token of the answer is a position. The end of the answer is a position too; there, any token that ends
an answer is right. All sequences form a prefix tree. A position is a node of the tree and the token that comes next, so
a node that several rows share is read and compared once.

Text: cut as llama-perplexity does (tools/perplexity/perplexity.cpp). Chunks have `chunk` tokens, special tokens are not
parsed, and tokens after the last whole chunk are left out. Where the vocabulary asks for a BOS token, it replaces the
first token of each chunk. Each chunk is read in an empty cache. The positions are the tokens from chunk // 2 + 1 to the
last one of a chunk. The logits after the last token are not used.
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
from edge.measure.corpus import context_limit, fallback_notes, from_text, rendered_prompts
from edge.measure.spans import token_fields
from edge.metrics import bucket
from edge.replay.check import reference_notes
from edge.replay.rows import Key, Row, describe, read_rows, row_sha256, rows_sha256
from edge.system.hashes import text_sha256

END = -1
"""The target of a position where the answer ends: any token that ends an answer."""


@dataclass(frozen=True)
class MeasuredRow:
    """One row or chunk whose tokens are predicted.

    `nodes[i]`: the node after which the token of position i is predicted. `slots[i]`: the index of position i among all
    pairs of a node and a target. `fields` and `command`: as from spans.token_fields; None where they are not known.
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

    `wanted[i]`: the indices of the tokens of sequence i that are such nodes, ascending, without those that an earlier
    sequence has read. `targets[node]`: the tokens that come next there, in the rows that contain the node. `chunk`:
    its number of tokens, None for rows. `reads`: the sequences that are read, None for all. `nodes`: the numbers of the
    nodes in the plan that this one is a part of.
    """

    corpus: Corpus
    wanted: list[list[int]]
    targets: list[tuple[int, ...]]
    rows: list[MeasuredRow]
    chunk: int | None
    reads: frozenset[int] | None = None
    nodes: NDArray[np.int64] | None = None

    @property
    def tokens(self) -> int:
        """The number of distinct tokens that are read."""
        chosen = range(len(self.corpus.sequences)) if self.reads is None else self.reads
        return sum(len(self.corpus.sequences[k]) - self.corpus.seen(k) for k in chosen)

    def part(self, places: Sequence[int]) -> "Plan":
        """The plan for the rows at these places only.

        It reads the sequences that have their nodes, in the same batches and with the same logits as the whole plan.
        So each value is the same to the last bit.
        """
        rows = [self.rows[place] for place in places]
        ends = np.cumsum([len(some) for some in self.wanted])
        needed = np.unique(np.concatenate([row.nodes for row in rows]))
        reads = frozenset(np.searchsorted(ends, needed, side="right").tolist())
        nodes = np.concatenate([np.arange(ends[k] - len(self.wanted[k]), ends[k]) for k in sorted(reads)])
        targets = [self.targets[node] for node in nodes]
        new = np.zeros(len(self.targets), np.int64)
        new[nodes] = np.arange(len(nodes))
        old_slots, new_slots = _first_slots(self.targets), _first_slots(targets)
        return Plan(
            self.corpus,
            [some if k in reads else [] for k, some in enumerate(self.wanted)],
            targets,
            [
                replace(
                    row,
                    nodes=new[row.nodes],
                    slots=row.slots - old_slots[row.nodes] + new_slots[new[row.nodes]],
                )
                for row in rows
            ],
            self.chunk,
            reads,
            nodes,
        )

    @cached_property
    def sha256(self) -> str:
        """The hash of everything that is read and looked at."""
        digest = hashlib.sha256(json.dumps([self.corpus.kind, self.chunk]).encode())
        for tokens, wanted in zip(self.corpus.sequences, self.wanted, strict=True):
            digest.update(json.dumps([tokens, wanted]).encode())
        digest.update(json.dumps(self.targets).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Tokens:
    """A row in tokens: its `prompt`, its `answer`, and the `targets` of its positions."""

    row: Row
    prompt: list[int]
    answer: list[int]
    targets: list[int]
    prompt_sha256: str | None
    fields: tuple[str, ...] | None
    command: range | None

    @property
    def sequence(self) -> list[int]:
        return self.prompt + self.answer

    @property
    def positions(self) -> slice:
        """The indices of the tokens after which a target is predicted."""
        first = len(self.prompt) - 1
        return slice(first, first + len(self.targets))

    def measured(self, nodes: NDArray[np.int64], slots: NDArray[np.int64]) -> MeasuredRow:
        return MeasuredRow(
            self.row.key,
            self.row.source_group,
            bucket(self.row.step_idx),
            nodes,
            slots,
            self.fields,
            self.command,
            row_sha256(self.row),
            self.prompt_sha256,
            len(self.prompt),
        )


def rows_plan(
    file: ModelFile,
    path: Path,
    *,
    context: int | None = None,
    limit: int | None = None,
    skip_too_long: bool = False,
    batch: int = BATCH,
) -> Plan:
    """Plan the first `limit` rows of a file. A row and its answer may have `context` tokens (None: the model's).

    A longer row is an error, or with `skip_too_long` left out. Raises ReplayError, PromptError, ContextError,
    ModelFileError.
    """
    rows = read_rows(path, limit)
    prompts = rendered_prompts(file, rows)
    most = context_limit(file, context)
    items = list[_Tokens]()
    with file_vocabulary(file.path) as vocabulary:
        for row, prompt in zip(rows, prompts, strict=True):
            item = _tokenized(vocabulary, row, prompt.text)
            length = len(item.sequence)
            if not item.prompt:
                raise PromptError(
                    f"{path}: {describe(row.key)} has an empty prompt: nothing predicts its answer"
                )
            if length <= most:
                items.append(item)
            elif not skip_too_long:
                raise ContextError(
                    f"{path}: {describe(row.key)} has {length} tokens with its reference and does not fit into a "
                    f"context of {most}; --skip-too-long leaves such rows out"
                )
    if not items:
        raise ContextError(f"{path}: no row fits into a context of {most} tokens")
    skipped = len(rows) - len(items)
    notes = []
    if skipped:
        notes.append(
            f"{skipped} of {len(rows)} rows are longer than the context of {most} tokens and were left out"
        )
    notes += fallback_notes(prompts) + reference_notes(path, rows, scored=False)
    if unknown := sum(item.fields is None for item in items):
        notes.append(
            f"the model's tokens spell {unknown} of {len(rows)} answers as another text: these have no fields and no "
            "first command"
        )
    kept = {item.row.key for item in items}
    sha256 = rows_sha256(row for row in rows if row.key in kept)
    order = reading_order([item.sequence for item in items])
    sequences = [items[i].sequence for i in order]
    shared = [common_length(a, b) for a, b in pairwise(sequences)]
    corpus = Corpus("rows", path, sha256, sequences, shared, skipped, tuple(notes), batch)
    return _plan(corpus, items, order)


def text_plan(
    file: ModelFile, path: Path, chunk: int, *, limit: int | None = None, batch: int = BATCH
) -> Plan:
    """Plan the first `limit` chunks of a text. Raises ReplayError, ContextError, ModelFileError."""
    if chunk < 4:
        raise ContextError(f"a chunk has {chunk} tokens; it must have at least 4")
    corpus = from_text(file, path, chunk)
    sequences = corpus.sequences[:limit]
    corpus = replace(corpus, sequences=sequences, shared=corpus.shared[: len(sequences) - 1], batch=batch)
    first, rows, targets = chunk // 2, list[MeasuredRow](), list[tuple[int, ...]]()
    for i, tokens in enumerate(corpus.sequences):
        nodes = np.arange(len(targets), len(targets) + chunk - 1 - first)
        targets += [(token,) for token in tokens[first + 1 :]]
        rows.append(MeasuredRow((f"chunk-{i:05d}", 0, 0), "text", "text", nodes, nodes))
    return Plan(corpus, [list(range(first, chunk - 1))] * len(rows), targets, rows, chunk)


def _tokenized(vocabulary: Vocabulary, row: Row, prompt: str) -> _Tokens:
    before, answer = _forced(vocabulary, prompt, row.ref_raw)
    targets = [*answer, END] if vocabulary.end_ids else list(answer)
    pieces = [vocabulary.spelling(token) for token in answer]
    fields, command = None, None
    if b"".join(pieces) == row.ref_raw.encode("utf-8"):
        fields, command = token_fields(row.ref_raw, pieces)
        fields += ["structure"] * (len(targets) - len(answer))  # the end of the answer
    known = None if fields is None else tuple(fields)
    return _Tokens(row, before, answer, targets, text_sha256(prompt), known, command)


def _forced(vocabulary: Vocabulary, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and of the answer after it.

    Where a tokenizer would merge the last token of the prompt with the answer, the answer is tokenized separately: a
    model begins to write after the last token of the prompt.
    """
    before, both = vocabulary.encode(prompt), vocabulary.encode(prompt + answer)
    if both[: len(before)] == before:
        return before, both[len(before) :]
    return before, vocabulary.encode(answer)


def _plan(corpus: Corpus, items: Sequence[_Tokens], order: Sequence[int]) -> Plan:
    """Number the nodes that the positions of `items` need. Sequence k of `corpus` is that of items[order[k]]."""
    # The number of each token's node in the whole tree, by item.
    tree: dict[int, NDArray[np.int64]] = {}
    last, count = np.empty(0, np.int64), 0
    for k, i in enumerate(order):
        new = len(corpus.sequences[k]) - corpus.seen(k)
        last = np.concatenate([last[: corpus.seen(k)], np.arange(count, count + new)])
        tree[i] = last
        count += new
    next_by_node: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        for node, target in zip(tree[i][item.positions].tolist(), item.targets, strict=True):
            known = next_by_node.setdefault(node, [])
            if target not in known:
                known.append(target)
    numbers = {node: number for number, node in enumerate(sorted(next_by_node))}
    targets = [tuple(next_by_node[node]) for node in numbers]
    begins = _first_slots(targets)
    wanted = list[list[int]]()
    for k, i in enumerate(order):
        own = tree[i][corpus.seen(k) :].tolist()
        wanted.append([place for place, node in enumerate(own, corpus.seen(k)) if node in numbers])
    rows = []
    for i, item in enumerate(items):
        nodes = [numbers[node] for node in tree[i][item.positions].tolist()]
        slots = [begins[n] + targets[n].index(target) for n, target in zip(nodes, item.targets, strict=True)]
        rows.append(item.measured(np.array(nodes, np.int64), np.array(slots, np.int64)))
    return Plan(corpus, wanted, targets, rows, None)


def _first_slots(targets: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    """The slot of the first target of each node."""
    ends: NDArray[np.int64] = np.cumsum([len(some) for some in targets], dtype=np.int64)
    return np.concatenate([np.zeros(1, np.int64), ends[:-1]])
