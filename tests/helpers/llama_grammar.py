"""llama.cpp's own grammar sampler, to compare with."""

import ctypes
from typing import Any

import llama_cpp
from actions import EOS, smol_tokenizer, smol_vocab

from edge.answer.style import load_grammar


class LlamaGrammar:
    """llama.cpp's own grammar sampler. To accept a token that it refuses aborts the process: so ask first."""

    def __init__(self, grammar: str | None = None) -> None:
        text = load_grammar() if grammar is None else grammar
        self.start = llama_cpp.llama_sampler_init_grammar(smol_vocab(), text.encode(), b"root")
        assert self.start, "llama.cpp cannot parse the grammar"

    def matches(self, text: bytes) -> bool:
        sampler = llama_cpp.llama_sampler_clone(self.start)
        try:
            for token in smol_tokenizer().tokenize_bytes(text):
                if not self._allows(sampler, token):
                    return False
                llama_cpp.llama_sampler_accept(sampler, token)
            return self._allows(sampler, EOS[0])
        finally:
            llama_cpp.llama_sampler_free(sampler)

    @staticmethod
    def _allows(sampler: Any, token: int) -> bool:
        one = (llama_cpp.llama_token_data * 1)(llama_cpp.llama_token_data(token, 1.0, 0.0))
        candidates = llama_cpp.llama_token_data_array(one, 1, -1, False)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(candidates))
        return one[0].logit > float("-inf")
