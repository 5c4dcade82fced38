"""The importance matrix in a conversion: which column weights each tensor of the GGUF is quantized with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.conversion.header import Placed
from edge.conversion.plan import Plan
from edge.conversion.weights import FLOATS
from edge.errors import ConversionError
from edge.llama import ggml

Weights = npt.NDArray[np.float32]

# As in llama.cpp's quantizer: without an importance matrix these types make a tensor useless. ggml itself requires
# a matrix for fewer types.
_LOW_BIT = ("iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s")
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


@dataclass(frozen=True)
class Importance:
    """An importance matrix, matched with a plan; without arguments: no matrix.

    `weights`: by tensor name, one weight for each column. `metadata`: the keys and values that the GGUF records about
    the matrix. `warnings`: one line each.
    """

    weights: Mapping[str, Weights] = field(default_factory=dict)
    metadata: tuple[tuple[str, int | str], ...] = ()
    warnings: tuple[str, ...] = ()

    def of(self, placed: Placed, kind: str, quant: str) -> Weights | None:
        """The weights of one tensor, of shape (matrices, columns), or None if it is quantized without weights.

        `kind` is the tensor's float type, `quant` the file's quantization type. The rules are those of llama.cpp's
        quantizer. Raises ConversionError if the number of weights does not fit the tensor, or if its type needs
        weights and the matrix has none.
        """
        name, shape = placed.tensor.name, placed.tensor.shape
        if placed.type == FLOATS[kind]:
            return None
        weights = self.weights.get(name)
        needed = placed.tensor.n_values // shape[-2]
        if weights is not None and weights.size != needed:
            if name not in _EMBEDDINGS:
                raise ConversionError(
                    f"the importance matrix has {weights.size:,} weights for {name}, not {needed:,}: "
                    "it was made for another model"
                )
            weights = None
        if weights is not None:
            return weights.reshape(-1, shape[-1])
        if needs_weights(name, placed.type, quant):
            type_name = ggml.type_name(placed.type).lower()
            fix = "the given one has no weights for it" if self.weights else "give one with --imatrix"
            raise ConversionError(
                f"{name} in {type_name} needs an importance matrix: {fix}, or choose a larger type"
            )
        return None


def needs_weights(name: str, number: int, quant: str) -> bool:
    """Whether a tensor in the ggml type `number`, in a file of the type `quant`, needs an importance matrix."""
    type_name = ggml.type_name(number).lower()
    low = type_name in _LOW_BIT or (type_name == "q2_k" and quant == "Q2_K_S")
    return (low and name not in (*_EMBEDDINGS, "output.weight")) or ggml.requires_imatrix(number)


def read_importance(imatrix: str | Path | None, plan: Plan) -> Importance:
    """Read an importance matrix file and match it with a plan.

    Raises ConversionError if the matrix has no weights for any tensor of the plan, and what `read_imatrix` raises.
    """
    if imatrix is None:
        return Importance()
    from edge.formats.imatrix import read_imatrix

    matrix = read_imatrix(imatrix)
    weights = matrix.weights()
    wanted = {
        tensor.name
        for tensor in plan.tensors
        if len(tensor.shape) > 1 and not tensor.f32 and not tensor.idle and tensor.name.startswith("blk.")
    }
    missing = wanted - weights.keys()
    if missing == wanted:
        raise ConversionError(
            f"{imatrix}: has no entry for any tensor of this model: it was made for another model"
        )
    warnings = []
    if missing:
        warnings.append(
            f"{imatrix} has no entry for {len(missing)} of {len(wanted)} tensors, such as {min(missing)}; "
            "edge quantizes these without a matrix"
        )
    return Importance(weights, tuple(matrix.metadata(str(imatrix))), tuple(warnings))
