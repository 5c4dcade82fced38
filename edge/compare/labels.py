"""The label of a result's model, from its provenance and not from the names of files."""

import re
from collections.abc import Sequence
from pathlib import Path

from edge.compare import patterns
from edge.replay.result import adapter_key
from edge.replay.stored_result import Head

_TYPE = (
    r"IQ[1-4]_(?:XXS|XS|NL|S|M)|TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|Q[2-8]_K(?:_(?:XL|S|M|L))?|Q[1-8]_[01]"
    r"|BF16|BFLOAT16|F16|FP16|FLOAT16|F32|FP32|FLOAT32"
)
_NAMED = re.compile(rf"(?<![A-Z0-9])(?:{_TYPE})(?![A-Z0-9])")
_SAME = {
    "BFLOAT16": "BF16",
    "FLOAT16": "F16",
    "FP16": "F16",
    "HALF": "F16",
    "FLOAT32": "F32",
    "FP32": "F32",
    "FLOAT": "F32",
}
_SHOWN = 12  # digits of a SHA-256


def stated_type(result: Head) -> str | None:
    """The quantization type that a result's provenance states, else its number type: `Q4_K_M`, `BF16`; None if neither.

    edge reads it from the model file, so it holds whatever the file is called.
    """
    stated = result.get("provenance", {}).get("quantization") or result.get("sampling", {}).get("dtype")
    text = str(stated or "").strip()
    return _SAME.get(text.upper(), text) or None


def model_hash(result: Head) -> str | None:
    """The SHA-256 of a result's model file; None where it is unknown."""
    return result.get("provenance", {}).get("model_sha256") or result.get("model_sha256")


def named_types(name: str) -> list[str]:
    """The quantization types that a name mentions."""
    return [_SAME.get(found, found) for found in _NAMED.findall(name.upper())]


def contradicted(name: str, result: Head) -> str | None:
    """The type that a name mentions although the model file has another one; None if the two agree."""
    stated = (stated_type(result) or "").upper()
    if not _NAMED.fullmatch(stated):
        return None
    named = named_types(name)
    # Q4_K in a name is short for Q4_K_M and the like.
    if not named or any(stated == one or stated.startswith(f"{one}_") for one in named):
        return None
    return named[0]


def file_notes(result: Head, path: Path | str, whose: str) -> list[str]:
    """A note for each type that a name states against the provenance. `whose`: the result in the sentences."""
    names = (
        ("its file", Path(path).name),
        ("its model file", _base(result.get("model_path"))),
        ("its model", _base(result.get("model_short"))),
    )
    notes, seen = [], set[str]()
    for what, name in names:
        named = contradicted(name, result)
        if named and named not in seen:
            seen.add(named)
            notes.append(patterns.MISNAMED(whose=whose, what=what, name=name, stated=stated_type(result)))
    return notes


def _base(path: str | None) -> str:
    return re.split(r"[/\\]", (path or "").rstrip("/\\"))[-1]


def same_model(a: Head, b: Head) -> bool:
    """Whether two results are known to be of one model file with the same adapters."""
    digest = model_hash(a)
    return digest is not None and digest == model_hash(b) and adapter_key(a) == adapter_key(b)


def same_file(result: Head, reference: Head) -> str:
    """The sentence that both sides have one model file; empty if they do not, or if it is unknown."""
    if not same_model(result, reference):
        return ""
    return patterns.SAME_MODEL(digest=str(model_hash(result))[:_SHOWN])


def shared_files(results: Sequence[tuple[str, Head]]) -> dict[str, list[str]]:
    """For each of several results by path: a note that names the others of the same model file."""
    notes: dict[str, list[str]] = {}
    for path, result in results:
        others = [name for name, other in results if name != path and same_model(result, other)]
        if others:
            digest = str(model_hash(result))[:_SHOWN]
            notes[path] = [patterns.SHARED_MODEL(digest=digest, others=", ".join(others))]
    return notes
