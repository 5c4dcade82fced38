"""llama.cpp's rollback of a hybrid (`n_rs_seq`): what of it is exact, and two silent traps. edge does not use it.

pytest tests/llama/test_rollback.py

The traps are faults of the library that edge would have to avoid. A test that fails after an update of llama.cpp says
that one of them is gone, or that the exact part is not exact any more.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from edge.llama import library

PROMPT = [20 + 7 * i % 300 for i in range(40)]
DRAFT = [31, 45, 52, 68, 77, 90]
NEXT = 101


class Context:
    """A context of llama.cpp with up to 8 tokens of rollback in each of two sequences."""

    def __init__(self, model: Any) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified, params.n_rs_seq = 256, 2, True, 8
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = 0
        self.pointer = llama_cpp.llama_init_from_model(model, params)
        self.memory = llama_cpp.llama_get_memory(self.pointer)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def decode(self, tokens: Sequence[int], begin: int, sequence: int = 0) -> np.ndarray:
        """Decode one chunk; the logits after its last token."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = (
                token,
                begin + i,
                1,
                sequence,
            )
            batch.logits[i] = i == len(tokens) - 1
        assert library.decode(self.pointer, batch) == 0
        pointer = llama_cpp.llama_get_logits_ith(self.pointer, len(tokens) - 1)
        logits = np.ctypeslib.as_array(pointer, (self.n_vocab,)).copy()
        llama_cpp.llama_batch_free(batch)
        return logits

    def roll_back(self, length: int) -> bool:
        """Remove what follows the first `length` tokens of sequence 0."""
        return bool(llama_cpp.llama_memory_seq_rm(self.memory, 0, length, -1))

    def read(self, *chunks: Sequence[int]) -> np.ndarray:
        """Decode chunks from an empty sequence 0; the logits after the last."""
        llama_cpp.llama_memory_clear(self.memory, True)
        begin, logits = 0, np.empty(0)
        for chunk in chunks:
            logits = self.decode(chunk, begin)
            begin += len(chunk)
        return logits


@pytest.fixture(scope="module")
def context(tiny_q4: Path) -> Iterator[Context]:
    library.start()
    model = library.load_model(tiny_q4, library.model_params())
    context = Context(model)
    yield context
    llama_cpp.llama_free(context.pointer)
    llama_cpp.llama_model_free(model)


def off(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("removed", range(1, len(DRAFT)))
def test_a_part_of_the_last_chunk_is_removed_exactly(context: Context, removed: int) -> None:
    """As if the rest of that chunk had been decoded as one chunk."""
    kept = DRAFT[:-removed]
    context.read(PROMPT, DRAFT)
    assert context.roll_back(len(PROMPT) + len(kept))
    assert off(context.decode([NEXT], len(PROMPT) + len(kept)), context.read(PROMPT, kept, [NEXT])) == 0


def test_trap_the_whole_last_chunk(context: Context) -> None:
    """llama.cpp says that it removed the chunk, and continues from another state."""
    context.read(PROMPT, DRAFT)
    assert context.roll_back(len(PROMPT))
    assert off(context.decode([NEXT], len(PROMPT)), context.read(PROMPT, [NEXT])) > 1


def test_trap_a_copy_before_the_next_token(context: Context) -> None:
    """The removal takes effect at the next chunk: a sequence that is copied before it is wrong, the first one right."""
    kept = DRAFT[:-2]
    begin = len(PROMPT) + len(kept)
    expected = context.read(PROMPT, kept, [NEXT])
    context.read(PROMPT, DRAFT)
    assert context.roll_back(begin)
    llama_cpp.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
    assert off(context.decode([NEXT], begin, sequence=1), expected) > 1
    assert off(context.decode([NEXT], begin), expected) == 0
