"""The type that llama.cpp chooses for each tensor of a quantized file, from a dry run of its quantizer.

`python -m edge.llama.types` reads a JSON request on standard input and prints llama.cpp's choices. It is a separate
process, because llama.cpp stops the whole process if one of its assertions fails.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from edge.errors import ConversionError
from edge.system.child import run_module, signal_name
from edge.system.text import did_you_mean

# By llama.cpp's names; the numbers are those of llama_model_quantize. It has no mixture for NVFP4 yet.
FTYPES = {
    name.removeprefix("LLAMA_FTYPE_").removeprefix("ALL_").removeprefix("MOSTLY_"): int(
        getattr(llama_cpp, name)
    )
    for name in dir(llama_cpp)
    if name.startswith("LLAMA_FTYPE_") and not name.endswith(("GUESSED", "NVFP4"))
}
QUANT_TYPES = sorted(FTYPES, key=lambda name: FTYPES[name])
NEEDS_IMATRIX = [
    name
    for name in QUANT_TYPES
    if name.startswith(("IQ1_", "IQ2_")) or name in ("IQ3_XXS", "IQ3_XS", "Q2_K_S")
]
_ALIASES = {"MXFP4": "MXFP4_MOE", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # llama-quantize's
# The lines that llama_model_quantize logs of a dry run: a tensor's name, and its new type unless it stays.
_TENSOR = re.compile(
    r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*\], type = +(\S+), +size = .*?MiB(?: -> .*MiB \((\S+)\))?$", re.MULTILINE
)
_END = "\0\n"  # after the log of each file type
_FALLBACK = re.compile(r"(\d+) of \d+ tensor\(s\) required fallback quantization")


@dataclass(frozen=True)
class Types:
    """llama.cpp's choice.

    `types`: for each tensor, ggml's name in lower case, in the order of llama.cpp's output file. `fallbacks`: how many
    tensors have another type than their mixture, because the block size does not divide their rows.
    """

    types: dict[str, str]
    fallbacks: int


def type_name(quant: str) -> str:
    """The name in QUANT_TYPES of a type that a user named, in any case. Raises ConversionError for an unknown one."""
    name = _ALIASES.get(quant.upper(), quant.upper())
    if name not in QUANT_TYPES:
        meant = did_you_mean(quant, (*QUANT_TYPES, *_ALIASES))
        raise ConversionError(
            f"{quant} is not a quantization type of llama.cpp; {f'{meant} All types: ' if meant else 'use one of '}"
            f"{', '.join(QUANT_TYPES)}"
        )
    return name


def choose_types(
    header: Path,
    ftype: int,
    *,
    has_imatrix: bool = False,
    output_type: int | None = None,
    embedding_type: int | None = None,
    overrides: Sequence[tuple[str, int]] = (),
) -> Types:
    """The type of each tensor of a GGUF if it is quantized to `ftype`. The data of the GGUF may still be missing.

    `overrides`: pairs of a regular expression, searched in tensor names, and a type's number in ggml; the first match
    counts. As in llama-quantize, they and the types for output and embedding go before the mixture's own choice.
    Raises ConversionError with llama.cpp's reason.
    """
    request = {
        "path": str(header),
        "ftypes": [ftype],
        "has_imatrix": has_imatrix,
        "output_type": output_type,
        "embedding_type": embedding_type,
        "overrides": list(overrides),
    }
    child = _asked(request)
    if child.returncode:
        reason = _reason(child.stderr, child.returncode)
        if overrides and re.search("regex|expression", reason):  # as C++ libraries name it
            if len(overrides) > 1:  # which of them? Each half is tried alone
                half = len(overrides) // 2
                for part in (overrides[:half], overrides[half:]):
                    choose_types(header, ftype, has_imatrix=has_imatrix, overrides=part)
            raise ConversionError(
                f"{overrides[0][0][:100]}: is not a regular expression of C++ ({reason}); for a literal character, put "
                "\\ before it",
                option="--tensor-type",
            )
        raise ConversionError(f"llama.cpp cannot quantize it: {reason}")
    return _types(child.stdout)


def choose_each(header: Path, ftypes: Sequence[int]) -> list[Types]:
    """As choose_types with an importance matrix, for each of several file types, in one process."""
    child = _asked({"path": str(header), "ftypes": list(ftypes), "has_imatrix": True})
    if child.returncode:
        raise ConversionError(f"llama.cpp cannot quantize it: {_reason(child.stderr, child.returncode)}")
    return [_types(log) for log in child.stdout.split(_END)[:-1]]


def _asked(request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return run_module("edge.llama.types", stdin=json.dumps(request))


def _types(log: str) -> Types:
    types = {name: (new or old).lower() for name, old, new in _TENSOR.findall(log)}
    fallback = _FALLBACK.search(log)
    return Types(types, int(fallback[1]) if fallback else 0)


def _reason(log: str, status: int) -> str:
    lines = [" ".join(line.split()) for line in log.splitlines() if line.strip(" =")]
    failed = [line for line in lines if "GGML_ASSERT" in line or "failed to quantize" in line]
    reason = (failed or lines or ["it gives no reason"])[-1]
    return reason if status > 0 else f"{reason} ({signal_name(status)})"


def _main() -> int:
    from edge.llama.devices import load_backends

    load_backends()
    request: dict[str, Any] = json.load(sys.stdin)

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def report(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        line = text.decode("utf-8", "surrogateescape")
        print(line, end="", file=sys.stderr if level == 4 else sys.stdout)  # GGML_LOG_LEVEL_ERROR

    llama_cpp.llama_log_set(report, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.dry_run, params.nthread = True, 1
    if request.get("output_type") is not None:
        params.output_tensor_type = request["output_type"]
    if request.get("embedding_type") is not None:
        params.token_embedding_type = request["embedding_type"]
    tensor_types = request.get("overrides", [])
    # Both lists end with an entry without a name. The presence of a matrix, even an empty one, changes some choices.
    overrides = (llama_cpp.llama_model_tensor_override * (len(tensor_types) + 1))()
    for entry, (pattern, number) in zip(overrides, tensor_types, strict=False):
        entry.pattern, entry.type = pattern.encode(), number
    imatrix = (llama_cpp.llama_model_imatrix_data * 1)()
    if tensor_types:
        params.tt_overrides = overrides
    if request["has_imatrix"]:
        params.imatrix = imatrix
    path = os.fsencode(request["path"])
    for ftype in request["ftypes"]:
        params.ftype = ftype
        if status := int(llama_cpp.llama_model_quantize(path, b"", ctypes.byref(params))):
            return status
        print(_END, end="")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
