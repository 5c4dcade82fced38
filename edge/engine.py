"""One llama.cpp model and its cache: token ids in, logits out. Knows nothing of text, prompts or JSON.

Two sequences live in one cache. The trunk holds the prompt read last; an answer is written into a copy of
it, so that the next prompt starts from the trunk again and only its new tokens are read. A hybrid (LFM2)
cannot be rewound, but it can be copied; where the next prompt leaves the trunk, a hybrid reads it anew and a
transformer rewinds.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from edge import llama
from edge.errors import ContextError, EdgeError, ModelFileError
from edge.machine import physical_cores

Logits = NDArray[np.float32]

_TRUNK, _ANSWER = 0, 1
_BATCH = 512  # tokens decoded at once; larger ones read no faster on the CPUs measured
_MAX_THREADS = 512  # GGML_MAX_N_THREADS; more end the process
_FLASH_ATTN_AUTO, _FLASH_ATTN_OFF = -1, 0  # enum llama_flash_attn_type


class Engine:
    """A loaded model. `gpu_layers` of -1 offloads all, where llama.cpp was built with a GPU backend."""

    def __init__(self, path: Path, *, gpu_layers: int = -1, threads: int | None = None) -> None:
        self._model = self._context = None  # for __del__, where the next lines raise
        threads = threads or physical_cores()
        if not 1 <= threads <= _MAX_THREADS:
            raise EdgeError(f"{threads} threads: llama.cpp takes 1 to {_MAX_THREADS}")
        llama.start()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        llama.forget_errors()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise ModelFileError(f"{path}: llama.cpp cannot load it: {llama.last_error()}")
        self.path = path
        self.threads = threads
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.context_length: int = llama_cpp.llama_model_n_ctx_train(self._model)
        self._rewindable = not (
            llama_cpp.llama_model_is_hybrid(self._model) or llama_cpp.llama_model_is_recurrent(self._model)
        )
        self.offloads = llama_cpp.llama_supports_gpu_offload() and gpu_layers != 0
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self.n_ctx = 0
        self._trunk: list[int] = []
        self._trunk_logits: Logits = np.zeros(0, np.float32)
        self._written = 0
        self.prompt_tokens_decoded = 0

    def close(self) -> None:
        """Free the model and its cache. The engine cannot be used any more."""
        self._free_context()
        if self._model:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        self.close()

    def check_open(self) -> None:
        """Raises EdgeError after `close`: llama.cpp would end the process."""
        if not self._model:
            raise EdgeError(f"{self.path}: this model was closed; load it again")

    def reserve(self, tokens: int) -> None:
        """Have a cache for at least `tokens` tokens, prompt and answer together.

        Raises ContextError if the model's context is shorter or memory does not suffice.
        """
        self.check_open()
        if tokens > self.context_length:
            raise ContextError(
                f"{self.path}: {tokens} tokens do not fit into this model's context of {self.context_length}"
            )
        if tokens <= self.n_ctx:
            return
        self._free_context()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = -(-tokens // 256) * 256  # llama.cpp pads to 256 itself
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = 2
        params.kv_unified = True  # both sequences share one cache, so that a copy costs nothing
        params.n_threads = params.n_threads_batch = self.threads
        # On a CPU attention writes faster without it.
        params.flash_attn_type = _FLASH_ATTN_AUTO if self.offloads else _FLASH_ATTN_OFF
        llama.forget_errors()
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ContextError(
                f"{self.path}: no memory for a context of {tokens} tokens: {llama.last_error()}"
            )
        self.n_ctx = params.n_ctx

    def start(self, prompt: Sequence[int]) -> Logits:
        """Read a prompt, as far as the trunk does not hold it yet, and begin an answer to it.

        Returns the logits after its last token: float32, shape (n_vocab,); read them before `extend`.
        Raises ContextError if `reserve` has not made room for it.
        """
        self.check_open()
        if not prompt:
            raise ContextError("the prompt has no tokens")
        if len(prompt) > self.n_ctx:
            raise ContextError(
                f"a prompt of {len(prompt)} tokens does not fit into a context of {self.n_ctx}"
            )
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_rm(memory, _ANSWER, -1, -1)
        if self._trunk != list(prompt):
            common = common_length(self._trunk, prompt)
            # The last token is read again where the trunk goes on behind it: its logits are gone.
            common = min(common, len(prompt) - 1)
            rewound = (
                self._rewindable and common and llama_cpp.llama_memory_seq_rm(memory, _TRUNK, common, -1)
            )
            if not rewound and not 0 < common == len(self._trunk):
                llama_cpp.llama_memory_seq_rm(memory, _TRUNK, -1, -1)
                common = 0
            self._trunk = []  # until every chunk is read; an interrupted prompt leaves none
            for begin in range(common, len(prompt), _BATCH):
                self._decode(prompt[begin : begin + _BATCH], begin, _TRUNK)
            self.prompt_tokens_decoded += len(prompt) - common
            self._trunk = list(prompt)
            self._trunk_logits = self._logits().copy()
        llama_cpp.llama_memory_seq_cp(memory, _TRUNK, _ANSWER, -1, -1)
        self._written = 0
        return self._trunk_logits

    def extend(self, tokens: Sequence[int]) -> Logits:
        """Go on with the answer by these tokens, decoded together; logits as in `start`."""
        for begin in range(0, len(tokens), _BATCH):
            part = tokens[begin : begin + _BATCH]
            self._decode(part, len(self._trunk) + self._written, _ANSWER)
            self._written += len(part)
        return self._logits()

    def _decode(self, tokens: Sequence[int], position: int, sequence: int) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i == len(tokens) - 1
        llama.forget_errors()
        status = llama_cpp.llama_decode(self._context, batch)
        if status == 1:
            raise ContextError(f"{position + len(tokens)} tokens do not fit into a context of {self.n_ctx}")
        if status:
            raise EdgeError(f"{self.path}: llama.cpp failed with status {status}: {llama.last_error()}")

    def _logits(self) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self.n_vocab,))

    def _free_context(self) -> None:
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = None
        self.n_ctx, self._trunk = 0, []


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
