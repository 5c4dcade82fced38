"""A writer that writes given tokens, whatever the logits are, and keeps the logits."""

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
