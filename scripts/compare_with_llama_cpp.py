#!/usr/bin/env python3
"""Compare what `edge convert` writes with llama.cpp's own tools: every tensor, every bit, every type.

pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
python scripts/compare_with_llama_cpp.py llama_cpp_python-0.3.36/vendor/llama.cpp CHECKPOINT [CHECKPOINT ...]

The peer is convert_hf_to_gguf.py of these sources (it needs torch, transformers and sentencepiece), which writes the
checkpoint's own dtype, followed by llama_model_quantize of the installed library, or by the binary that
`--llama-quantize` names. With `--imatrix FILE` every type is also compared with that importance matrix. A matrix
belongs to one model, so give only one checkpoint then. Without the binary, edge prepares the matrix for both sides.

Two changes help the peer. If it does not know the hash of a tokenizer, it gets the pre-tokenizer that edge found from
the structure of tokenizer.json. If a checkpoint keeps experts in one tensor, the script splits them where the peer
needs that (LFM2-MoE). Both changes leave all values unchanged.

Prints a Markdown table, and each metadata entry that differs. The exit code is 1 if any tensor differs.
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge.conversion.families import make_plan
from edge.conversion.tokenizer import make_vocabulary
from edge.convert import convert
from edge.errors import ConversionError
from edge.formats.checkpoint import open_checkpoint
from edge.formats.gguf import read_metadata, read_tensors
from edge.llama.types import NEEDS_IMATRIX, QUANT_TYPES
from edge.system.tables import table

FLOATS = ("F32", "F16", "BF16")
CONVERTER = Path(__file__).with_name("llama_cpp_converter.py")


def run_quantizer(source: Path, out: Path, quant: str, imatrix: Path | None) -> None:
    """Run llama_model_quantize in this process."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    name = f"LLAMA_FTYPE_{'ALL' if quant == 'F32' else 'MOSTLY'}_{quant}"
    params.ftype = getattr(llama_cpp, name)
    keep: list[Any] = []
    if imatrix is not None:
        from edge.formats.imatrix import read_imatrix

        weights = read_imatrix(imatrix).weights()
        entries = (llama_cpp.llama_model_imatrix_data * (len(weights) + 1))()
        for entry, (tensor, values) in zip(entries, weights.items(), strict=False):
            flat = np.ascontiguousarray(values, np.float32).reshape(-1)
            keep.append(flat)
            entry.name, entry.size = tensor.encode(), flat.size
            entry.data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    status = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    sys.exit(int(status))


def child(arguments: list[str], log: Path) -> bool:
    """Run a command with its output in a file. Return whether it succeeded."""
    with log.open("w") as stream:
        return not subprocess.run(
            arguments, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL
        ).returncode


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip(" =")]
    return lines[-1] if lines else "no reason given"


def unfused(folder: Path, out: Path) -> Path:
    """The checkpoint with a separate tensor for each expert's matrix, as the peer needs LFM2-MoE."""
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    files = sorted(folder.glob("*.safetensors"))
    if config.get("architectures") != ["Lfm2MoeForCausalLM"]:
        return folder
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    if not any(name.endswith("experts.gate_up_proj") for name in tensors):
        return folder
    for name in list(tensors):
        stem, _, last = name.rpartition(".experts.")
        if last == "gate_up_proj":
            for i, both in enumerate(tensors.pop(name)):
                gate, up = both.chunk(2)
                tensors[f"{stem}.experts.{i}.w1.weight"] = gate.contiguous()
                tensors[f"{stem}.experts.{i}.w3.weight"] = up.contiguous()
        elif last == "down_proj":
            for i, down in enumerate(tensors.pop(name)):
                tensors[f"{stem}.experts.{i}.w2.weight"] = down.contiguous()
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def tensor_differences(ours: Path, theirs: Path) -> list[str]:
    """Names of the tensors that differ in type, shape or bits, or that one file lacks."""
    left = {tensor.name: tensor for tensor in read_tensors(ours)}
    right = {tensor.name: tensor for tensor in read_tensors(theirs)}
    maps = np.memmap(ours, np.uint8, "r"), np.memmap(theirs, np.uint8, "r")
    different = sorted(left.keys() ^ right.keys())
    for name in left.keys() & right.keys():
        a, b = left[name], right[name]
        bits = [each[t.offset : t.offset + t.n_bytes] for each, t in zip(maps, (a, b), strict=True)]
        if (a.type, a.shape) != (b.type, b.shape) or not np.array_equal(*bits):
            different.append(f"{name} ({a.type} {list(a.shape)}, {b.type} {list(b.shape)})")
    return different


def metadata_differences(ours: Path, theirs: Path) -> dict[str, tuple[Any, Any]]:
    """Entries that only one file has, or whose values differ, without the long lists of the vocabulary."""
    left, right = read_metadata(ours), read_metadata(theirs)
    return {
        key: (left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    }


def vocabulary_differences(ours: Path, theirs: Path) -> list[str]:
    """Long lists of the metadata (tokens, types, scores, merges) that differ."""
    import gguf

    readers = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    names = {name for reader in readers for name, field in reader.fields.items() if len(field.data) > 1}
    values = [
        {name: reader.fields[name].contents() for name in names & reader.fields.keys()} for reader in readers
    ]
    return sorted(name for name in names if values[0].get(name) != values[1].get(name))


def compare(folder: Path, options: argparse.Namespace, work: Path) -> tuple[list[list[str]], list[str], bool]:
    """Table lines, notes, and whether all tensors were equal."""
    checkpoint = open_checkpoint(folder)
    pre = make_vocabulary(checkpoint, make_plan(checkpoint).n_vocab).pre
    dtype = checkpoint.dtype.lower()
    log, floats = work / "log", work / f"peer-{dtype}.gguf"
    source = unfused(folder, work / "unfused")
    me = [sys.executable, __file__]
    converter = [sys.executable, str(CONVERTER), str(options.sources), pre]
    arguments = [str(source), "--outtype", dtype, "--outfile", str(floats)]
    if not child([*converter, *arguments], log):
        sys.exit(f"{folder}: llama.cpp's converter failed: {last_line(log)}")
    lines, notes, equal = [], [], True
    known: dict[str, set[str]] = {}
    for quant in options.types:
        for imatrix in [None, *([options.imatrix] if options.imatrix else [])]:
            if imatrix is not None and quant in FLOATS:
                continue
            ours, theirs = work / "edge.gguf", work / "peer.gguf"
            if quant.lower() == dtype:
                shutil.copy(floats, theirs)
                made = True
            elif quant in FLOATS:  # the converter writes these, not the quantizer
                arguments = [str(source), "--outtype", quant.lower(), "--outfile", str(theirs)]
                made = child([*converter, *arguments], log)
            elif options.llama_quantize:
                matrix = ["--imatrix", str(imatrix)] if imatrix else []
                made = child([str(options.llama_quantize), *matrix, str(floats), str(theirs), quant], log)
            else:
                made = child([*me, "--quantizer", str(floats), str(theirs), quant, str(imatrix or "")], log)
            try:
                convert(folder, quant=quant, out=ours, imatrix=imatrix, check=False, force=True)
                refused = ""
            except ConversionError as error:
                refused = str(error)
            name = [checkpoint.name, quant, "yes" if imatrix else "no"]
            if refused or not made:
                both = bool(refused) and not made
                equal &= both
                reason = "" if made else last_line(log)
                lines.append(
                    [
                        *name,
                        "–",
                        "–",
                        "both refuse" if both else f"edge: {refused or 'made'}; peer: {reason or 'made'}",
                    ]
                )
                continue
            different = tensor_differences(ours, theirs)
            equal &= not different
            count = len(read_tensors(ours))
            order = [[tensor.name for tensor in read_tensors(path)] for path in (ours, theirs)]
            same = "all equal" if order[0] == order[1] else "all equal, in a different order"
            sizes = f"{ours.stat().st_size / 1e6:.1f}"
            lines.append([*name, str(count), sizes, ", ".join(different[:3]) or same])
            for key, values in metadata_differences(ours, theirs).items():
                shown = f"`{key}`: edge {_short(values[0])}, llama.cpp {_short(values[1])}"
                known.setdefault(shown, set()).add(quant)
            if quant in FLOATS:
                for key in vocabulary_differences(ours, theirs):
                    known.setdefault(f"`{key}`: the lists differ", set()).add(quant)
            ours.unlink()
            theirs.unlink()
        print(f"{checkpoint.name} {quant}: {lines[-1][-1]}", file=sys.stderr)
    for shown, quants in known.items():
        where = "all types" if len(quants) == len({line[1] for line in lines}) else ", ".join(sorted(quants))
        notes.append(f"- {checkpoint.name}: {shown} ({where})")
    return lines, notes, equal


def _short(value: Any) -> str:
    return "none" if value is None else re.sub(r"\s+", " ", repr(value))[:60]


def main() -> None:
    if sys.argv[1:2] == ["--quantizer"]:
        source, out, quant, imatrix = sys.argv[2:]
        return run_quantizer(Path(source), Path(out), quant, Path(imatrix) if imatrix else None)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sources", type=Path, metavar="LLAMA_CPP", help="llama.cpp's sources of the installed version"
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--imatrix", type=Path, help="importance matrix of the checkpoint")
    parser.add_argument(
        "--llama-quantize",
        type=Path,
        metavar="BINARY",
        help="llama-quantize binary to use instead of the library's function",
    )
    parser.add_argument(
        "--types",
        default=",".join(QUANT_TYPES),
        help="types to compare, separated by commas (default: all types of the installed library)",
    )
    options = parser.parse_args()
    options.types = [name.strip().upper() for name in options.types.split(",")]
    lines, notes, equal = [], [], True
    for folder in options.checkpoints:
        with tempfile.TemporaryDirectory(prefix="compare-") as work:
            more, further, same = compare(folder, options, Path(work))
        lines += more
        notes += further
        equal &= same
    print(
        "\n".join(
            table(
                ["model", "type", "matrix", "tensors", "MB", "tensors' types and bits"], lines, right=[3, 4]
            )
        )
    )
    print("\nMetadata:\n" + "\n".join(notes or ["- no difference"]))
    needs = [line[1] for line in lines if line[-1] == "both refuse" and line[1] not in NEEDS_IMATRIX]
    sys.exit(0 if equal and not needs else 1)


if __name__ == "__main__":
    main()
