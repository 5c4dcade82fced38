"""The KV cache of a loaded model: its sequences, and the states that later prompts continue from.

A state is a sequence and the tokens in it. In a unified cache all sequences share the cells, so a copy of a sequence
costs no memory and no time. The cache of a hybrid model (LFM2) cannot be rewound, but it can be copied: a state is
held at each length where prompts part. A transformer needs fewer states, and they share cells.
"""

import ctypes
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import llama_cpp

from edge.errors import ContextError
from edge.llama import library
from edge.llama.adapters import LoadedAdapter, use_adapters
from edge.llama.jobs import Logits
from edge.llama.memory import MAX_SEQUENCES, buffers, padded, read_shape
from edge.llama.prefixes import common_length, distinct_tokens
from edge.system.signals import signals_later

KV_TYPES = {
    "f16": llama_cpp.GGML_TYPE_F16,
    "q8_0": llama_cpp.GGML_TYPE_Q8_0,
    "q4_0": llama_cpp.GGML_TYPE_Q4_0,
}


@dataclass(eq=False)
class State:
    """A sequence of the cache and the tokens in it."""

    sequence: int
    tokens: list[int]
    owner: object
    logits: Logits | None = None
    """The logits after the last token, if a prompt ends there."""
    ends: list[int] | None = field(default_factory=list)
    """Lengths at which the chunks ended in which the tokens were read; None if it was read beside others."""

    def ends_at(self, length: int) -> list[int] | None:
        """The chunks of the first `length` tokens; None if not known, or if a chunk goes beyond them."""
        if self.ends is None or (length and length not in self.ends):
            return None
        return [end for end in self.ends if end <= length]

    def grow(self, tokens: Sequence[int], *, alone: bool) -> None:
        """Add the tokens of a chunk. `alone`: nothing else was in its batch."""
        self.tokens += tokens
        self.logits = None
        if tokens:
            self.ends = [*self.ends, len(self.tokens)] if alone and self.ends is not None else None


AnyState = TypeVar("AnyState", bound=State)


@dataclass(frozen=True)
class _Saved:
    """A state on its way to a larger cache. `trunk` has the same keys and values, and more."""

    state: State
    trunk: State | None
    data: Any
    flags: int


class Cache:
    """The cache of one model, empty until `resize`. Use it in one thread.

    `adapters`: LoRA adapters that all its tokens are read with, unless `use` changes them.

    `model` is llama.cpp's pointer, valid while the cache is used. `unified`: all sequences share the cells; otherwise
    each sequence has an equal part of them.
    """

    def __init__(
        self,
        model: Any,
        path: Path,
        *,
        threads: int,
        batch: int,
        kv_type: str,
        flash_attention: bool,
        offloads: bool,
        unified: bool = True,
        adapters: Sequence[LoadedAdapter] = (),
    ) -> None:
        self.context: Any = None  # llama.cpp's context; another one after each `resize`
        self.cells = 0
        self.sequences = 0
        # A recurrent layer has its state only after the last token, so only a whole copy is useful.
        self.rewindable = not (
            llama_cpp.llama_model_is_hybrid(model) or llama_cpp.llama_model_is_recurrent(model)
        )
        self._model = model
        self._path = path
        self._threads = threads
        self._batch = batch
        self._kv_type = kv_type
        self._flash_attention = flash_attention
        self._offloads = offloads
        self.unified = unified
        self._adapters = tuple(adapters)
        self._files = tuple(adapters)  # whose memory counts
        self._memory: Any = None
        self._free: list[int] = []  # sequences that are not in use
        self._states: list[State] = []  # held for later prompts; the most recently used is last

    def resize(self, cells: int, sequences: int) -> None:
        """Make room for at least `cells` tokens of all sequences together, and for that many sequences.

        Held states move to the larger cache. Raises ContextError if there is not enough memory; the cache is then
        empty.
        """
        sequences = max(2, min(sequences, MAX_SEQUENCES))  # one is read while another is written
        if cells <= self.cells and sequences <= self.sequences:
            return
        held = list(self._states)
        moved: list[_Saved] = []
        for state in sorted(held, key=lambda state: -len(state.tokens)):
            moved.append(self._save(state, moved))
        cells = padded(max(cells, self.cells))
        sequences = max(sequences, self.sequences)
        self.close()
        self._make_context(cells, sequences)
        self.cells = cells
        self.sequences = sequences
        self._free = list(reversed(range(sequences)))
        for saved in moved:
            self._restore(saved)
        self._states = [state for state in held if state.sequence >= 0]

    @property
    def empty(self) -> bool:
        """Whether no state is held."""
        return not self._states

    @property
    def window(self) -> int:
        """Tokens that one sequence can have."""
        return self.cells if self.unified else self.cells // max(1, self.sequences)

    def length(self, sequence: int) -> int:
        """The number of tokens in a sequence."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def use(self, adapters: Sequence[LoadedAdapter]) -> None:
        """Read and write with these adapters from now on. Keep what was read with others apart."""
        if self._adapters != tuple(adapters):
            self._adapters = tuple(adapters)
            if self.context:  # otherwise the next one gets them
                use_adapters(self.context, self._adapters)

    def close(self) -> None:
        """Free llama.cpp's context with everything in it."""
        if self.context:
            llama_cpp.llama_free(self.context)
            self.context = self._memory = None
        self.cells = self.sequences = 0
        self._states = []

    def branch(
        self,
        prompt: Sequence[int],
        owner: object,
        *,
        needed: Collection[int],
        writing: Sequence[Sequence[int]],
        room: int,
    ) -> State:
        """A new sequence with as much of the prompt as is held. The caller drops or holds it.

        Held states that nobody needs are dropped: those of the same owner that are not on the way to the prompt,
        and, if the owner is None, those whose length is not in `needed`. So are other states, the cheapest first,
        until the prompt, the prompts in `writing` and `room` tokens fit beside what is held.
        """
        start, length = self.longest(self._states, prompt)
        state = State(self.take(start), list(prompt[:length]), owner)
        if start is not None and length:
            end = -1 if length == len(start.tokens) else length
            llama_cpp.llama_memory_seq_cp(self._memory, start.sequence, state.sequence, -1, end)
            state.logits = start.logits if length == len(prompt) else None
            state.ends = start.ends_at(length)
        others = []
        for held in list(self._states):
            on_path = common_length(held.tokens, prompt) == len(held.tokens)
            if held.owner is owner and not (on_path and (owner is not None or len(held.tokens) in needed)):
                self.drop(held)  # now, so that the next tokens take its cells
            elif not on_path:
                others.append(held)
        while distinct_tokens([*(other.tokens for other in others), *writing, prompt]) + room > self.cells:
            cheapest = min(others, key=self._loss)
            others.remove(cheapest)
            self.drop(cheapest)
        return state

    def longest(self, states: Iterable[AnyState], prompt: Sequence[int]) -> tuple[AnyState | None, int]:
        """The state that saves most of a prompt, and how many tokens of it need not be read again."""
        best = max(states, key=lambda state: self._usable(state, prompt), default=None)
        return best, 0 if best is None else self._usable(best, prompt)

    def take(self, keep: State | None = None) -> int:
        """A free sequence. If there is none, the held state that is cheapest to read again is dropped, not `keep`."""
        if not self._free:
            self.drop(min((state for state in self._states if state is not keep), key=self._loss))
        return self._free.pop()

    def copy(self, state: State) -> State:
        """A state in another sequence with the same tokens."""
        copy = State(self.take(state), list(state.tokens), state.owner, state.logits, state.ends)
        llama_cpp.llama_memory_seq_cp(self._memory, state.sequence, copy.sequence, -1, -1)
        return copy

    def hold(self, state: State) -> None:
        """Keep a state for later prompts; it replaces one with the same tokens."""
        for other in list(self._states):
            if other.owner is state.owner and other.tokens == state.tokens:
                self.drop(other)
        self._states.append(state)

    def drop(self, state: State) -> None:
        """Empty a state's sequence and free it."""
        if state in self._states:
            self._states.remove(state)
        self.cut(state.sequence, 0)
        self._free.append(state.sequence)

    def drop_cheapest(self) -> bool:
        """Drop the held state that is cheapest to read again; False if no state is held."""
        if not self._states:
            return False
        self.drop(min(self._states, key=self._loss))
        return True

    def cut(self, sequence: int, length: int) -> None:
        """Remove what follows the first `length` tokens of a sequence. Of a hybrid only a length of 0 is possible."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, length or -1, -1)

    def of(self, owner: object) -> list[State]:
        """The held states of an owner."""
        return [state for state in self._states if state.owner is owner]

    def forget(self, owner: object) -> None:
        """Drop the states of an owner."""
        for state in self.of(owner):
            self.drop(state)

    def held_by_others(self, owner: object) -> int:
        """Tokens in the held states of other owners."""
        return distinct_tokens(
            [s.tokens for s in self._states if s.owner is not owner and s.owner is not None]
        )

    def export_size(self, sequence: int, flags: int = 0) -> int:
        """Bytes that `export_sequence` takes."""
        return int(llama_cpp.llama_state_seq_get_size_ext(self.context, sequence, flags))

    def export_sequence(self, sequence: int, size: int, flags: int = 0) -> Any:
        """A sequence in llama.cpp's own form: a ctypes array of `size` bytes."""
        data = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data_ext(self.context, data, size, sequence, flags)
        return data

    def import_sequence(self, sequence: int, data: Any, flags: int = 0) -> bool:
        """Fill an empty sequence with what `export_sequence` gave; False, and it stays empty, if it does not fit."""
        if llama_cpp.llama_state_seq_set_data_ext(self.context, data, len(data), sequence, flags):
            return True
        self.cut(sequence, 0)
        return False

    def _usable(self, state: State, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt need not be read again, because the state has them."""
        common = common_length(state.tokens, prompt)
        if common < len(state.tokens) and not self.rewindable:
            return 0
        if common == len(prompt) and (common < len(state.tokens) or state.logits is None):
            return common - 1 if self.rewindable else 0  # the last token is read again for its logits
        return common

    def _loss(self, state: State) -> int:
        """How many tokens would have to be read again without this state."""
        others = (self._usable(other, state.tokens) for other in self._states if other is not state)
        return len(state.tokens) - max(others, default=0)

    def _save(self, state: State, longer: Sequence[_Saved]) -> _Saved:
        """What a new cache needs of a state: all of it, or only what a longer state with the same beginning lacks."""
        trunk = next(
            (
                o.state
                for o in longer
                if o.trunk is None and o.state.tokens[: len(state.tokens)] == state.tokens
            ),
            None,
        )
        if trunk is not None and self.rewindable:
            return _Saved(state, trunk, None, 0)
        flags = 0 if trunk is None else llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY  # the recurrent part
        size = self.export_size(state.sequence, flags)
        return _Saved(state, trunk, self.export_sequence(state.sequence, size, flags), flags)

    def _restore(self, saved: _Saved) -> None:
        """Bring a state into a new cache; its sequence becomes -1 if there is no room for it."""
        state, trunk = saved.state, saved.trunk
        state.sequence = -1
        if not self._free or (trunk is not None and trunk.sequence < 0):
            return
        sequence = self._free.pop()
        if trunk is not None:
            llama_cpp.llama_memory_seq_cp(self._memory, trunk.sequence, sequence, -1, len(state.tokens))
        if saved.data is None or self.import_sequence(sequence, saved.data, saved.flags):
            state.sequence = sequence
        else:
            self._free.append(sequence)

    def _make_context(self, cells: int, sequences: int) -> None:
        problem = f"{self._path}: cannot make a cache of {cells} tokens"
        batch = max(self._batch, sequences)  # llama.cpp asserts it
        needed = buffers(
            read_shape(self._path, [loaded.adapter.path for loaded in self._files]),
            cells,
            sequences=sequences,
            batch=batch,
            kv_type=self._kv_type,
            flash_attention=self._flash_attention,
            apart=not self.unified,
        )
        library.check_room(problem, needed.total)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = batch
        params.n_seq_max = sequences
        params.kv_unified = self.unified
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = KV_TYPES[self._kv_type]
        # enum llama_flash_attn_type: 0 off, 1 on, -1 on where the device can
        params.flash_attn_type = (
            -1 if self._flash_attention and self._offloads else int(self._flash_attention)
        )
        library.end_early(params)
        library.forget_errors()
        with signals_later():
            self.context = llama_cpp.llama_init_from_model(self._model, params)
        if not self.context:
            raise ContextError(f"{problem}: {library.last_error()}")
        if self._adapters:
            use_adapters(self.context, self._adapters)
        self._memory = llama_cpp.llama_get_memory(self.context)
