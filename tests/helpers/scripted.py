"""Writers for tests: one writes given tokens for any logits and keeps the logits, one writes the best tokens."""

from collections.abc import Sequence

import numpy as np

from edge.llama.jobs import Writer

Read = list[np.ndarray]
"""Logits, each of shape (n_vocab,)."""


def script(*parts: Sequence[int]) -> Writer[Read]:
    """Writes these tokens for any logits; returns the logits after the prompt and after each part."""
    read = [(yield []).copy()]
    for part in parts:
        read.append((yield list(part)).copy())
    return read


def greedy(count: int, log: list[str] | None = None, name: str = "") -> Writer[list[int]]:
    """The best token, `count` times; for each one, `name` goes into `log`."""
    tokens: list[int] = []
    logits = yield []
    while True:
        tokens.append(int(logits.argmax()))
        if log is not None:
            log.append(name)
        if len(tokens) == count:
            return tokens
        logits = yield tokens[-1:]
