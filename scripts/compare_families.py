"""Compare each family's conversion with llama.cpp's own converter, on small random checkpoints.

    python scripts/compare_families.py LLAMA_CPP [FAMILY ...]

LLAMA_CPP is a source tree of llama.cpp of the version in llama-cpp-python. The sdist of llama-cpp-python has one in
vendor/llama.cpp. The families are those of tests/helpers/make_random.py, and the CASES of this file, each with a model
card. Both converters write bfloat16. The script compares every tensor's name, type, shape and bits, and all metadata.
It fails if an entry differs that is not in EXPECTED.

llama.cpp's converter needs two changes. Its table of tokenizer hashes does not know a tokenizer that was made here, so
it gets the name of the pre-tokenizer. If the published model has a tokenizer.model, it gets one with the pieces of
tokenizer.json, through a substitute for the sentencepiece package.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

PRE = {
    "qwen2": "qwen2",
    "qwen3": "qwen2",
    "qwen35": "qwen35",
    "mistral-tekken": "tekken",
    "ministral3": "tekken",
}
SENTENCEPIECE = (
    "gemma3",
    "gemma3-image",
    "gemma3-parent",
    "mistral",
    "mistral-metaspace",
)  # published with a tokenizer.model

# Folders as people have them: a family, and what makes of it.
CASES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "qwen3-tied": ("qwen3", lambda folder: tied(folder, own=False)),
    "qwen3-tied-own": ("qwen3", lambda folder: tied(folder, own=True)),
    "qwen3-index": ("qwen3", lambda folder: with_index(folder)),
    "qwen3-removed": ("qwen3", lambda folder: removed(folder)),
    "gemma3-image": ("gemma3", lambda folder: image_token(folder)),
    "mistral-metaspace": ("mistral", lambda folder: metaspace(folder)),
}

EXPECTED = {
    "general.name": "the folder's name, unchanged or as a title",
    "tokenizer.ggml.eot_token_id": "a second EOS of generation_config.json, which llama.cpp's converter does not read",
    "tokenizer.ggml.add_eos_token": "false; llama.cpp's converter relies on the default, which is false",
    "edge.version": "only edge's files have it",
    "edge.crc32": "only edge's files have it",
}

# What differs in one case only.
EXPECTED_IN = {
    "mistral-metaspace": {
        "tokenizer.ggml.add_space_prefix": "false, so that prompts have the tokens of transformers",
    }
}

CARD = """---
license: other
license_name: a-licence
language: [en, ko]
tags: [terminal]
pipeline_tag: text-generation
base_model: [owner/base-8b-v2-instruct, "https://huggingface.co/owner/other"]
datasets: owner/rows
---
"""
STAND_IN = """
import json

class SentencePieceProcessor:
    def LoadFromFile(self, path):
        self.pieces = json.load(open(path, encoding="utf-8"))
    def vocab_size(self):
        return len(self.pieces)
    def IdToPiece(self, i):
        return self.pieces[i][0]
    def GetScore(self, i):
        return self.pieces[i][1]
    def IsUnknown(self, i):
        return self.pieces[i][2] == 2
    def IsControl(self, i):
        return self.pieces[i][2] == 3
    def IsUnused(self, i):
        return self.pieces[i][2] == 5
    def IsByte(self, i):
        return self.pieces[i][2] == 6
"""
PEER = """
import runpy, sys
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: PRE
runpy.run_path(SCRIPT, run_name="__main__")
"""


def tied(folder: Path, *, own: bool) -> None:
    """Tie the output matrix to the embeddings in config.json, and remove it unless the model has its `own`."""
    from safetensors.torch import load_file, save_file

    stored = load_file(folder / "model.safetensors")
    if not own:
        del stored["lm_head.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8")


def with_index(folder: Path) -> None:
    """Add an index whose only file is model.safetensors."""
    from safetensors.torch import load_file

    names = load_file(folder / "model.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(stored)
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")


def removed(folder: Path) -> None:
    """A Split that removes what its regex does not find, as phi-4 has it."""
    split = {"behavior": "Removed", "invert": True}
    change_tokenizer(folder, lambda stored: stored["pre_tokenizer"]["pretokenizers"][0].update(split))


def image_token(folder: Path) -> None:
    """Gemma 3's token for images, one past the rows of the text models."""
    token = {"id": 1024, "content": "<image_soft_token>", "special": True}

    def change(stored: dict[str, Any]) -> None:
        stored["added_tokens"].append({**stored["added_tokens"][0], **token})

    change_tokenizer(folder, change)


def metaspace(folder: Path) -> None:
    """Llama 2's tokenizer as transformers 5 saves it."""
    scheme = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    change_tokenizer(folder, lambda stored: stored.update(normalizer=None, pre_tokenizer=scheme))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["add_prefix_space"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def peer(llama_cpp: Path, family: str, folder: Path, out: Path) -> None:
    """Run llama.cpp's converter in a separate process with its own gguf package."""
    stand_in = out.parent / "stand-in"
    stand_in.mkdir()
    (stand_in / "sentencepiece.py").write_text(STAND_IN, encoding="utf-8")
    if family in SENTENCEPIECE:
        write_pieces(folder)
    script = llama_cpp / "convert_hf_to_gguf.py"
    name = next((name for start, name in reversed(PRE.items()) if family.startswith(start)), "")
    code = PEER.replace("PRE", repr(name)).replace("SCRIPT", repr(str(script)))
    command = [sys.executable, "-c", code, str(folder), "--outfile", str(out), "--outtype", "bf16"]
    if family.startswith("qwen35") and not family.endswith("-mtp"):
        command.append("--no-mtp")  # without MTP tensors the default fails
    path = os.pathsep.join(map(str, (llama_cpp / "gguf-py", llama_cpp, stand_in)))
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{family}: llama.cpp's converter failed:\n{run.stderr[-3000:]}")


def write_pieces(folder: Path) -> None:
    """Write tokenizer.model from tokenizer.json, as SentencePiece would have trained it."""
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = stored["model"]["vocab"]
    special = {token["content"]: token["special"] for token in stored["added_tokens"]}
    pieces: list[tuple[str, float, int]] = []
    count = 0
    for text in sorted(vocab, key=vocab.__getitem__):
        if text in special:
            pieces.append((text, 0.0, 2 if text == "<unk>" else 3 if special[text] else 4))
        elif len(text) == 6 and text.startswith("<0x"):
            pieces.append((text, 0.0, 6))
        else:
            pieces.append((text, -float(count), 1))
            count += 1
    (folder / "tokenizer.model").write_text(json.dumps(pieces), encoding="utf-8")


def tensors(path: Path) -> dict[str, tuple[Any, ...]]:
    return {
        tensor.name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in GGUFReader(path).tensors
    }


def metadata(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.float32(one) == np.float32(other))
    return bool(one == other)


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(value)})"


def first_difference(one: Any, other: Any) -> str:
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        places = [i for i, pair in enumerate(zip(one, other, strict=True)) if not same(*pair)]
        return f"{len(places)} of {len(one)}, first at {places[0]}: {one[places[0]]!r}, {other[places[0]]!r}"
    return f"{shown(one)}, {shown(other)}"


def compare(family: str, llama_cpp: Path) -> bool:
    """Convert in both ways and print the differences. True if all tensors and metadata but those expected are equal."""
    from make_random import FAMILIES

    from edge.convert import convert

    with tempfile.TemporaryDirectory() as name:
        folder = (
            Path(name) / "model"
        )  # a neutral name: the peer reads sizes and versions from the folder's name
        made_from, change = CASES.get(family, (family, lambda folder: None))
        FAMILIES[made_from](folder)
        change(folder)
        (folder / "README.md").write_text(CARD, encoding="utf-8")
        ours, theirs = Path(name) / "edge.gguf", Path(name) / "llama.cpp.gguf"
        done = convert(folder, quant="BF16", out=ours, threads=1)
        peer(llama_cpp, family, folder, theirs)
        a, b = tensors(ours), tensors(theirs)
        equal = sum(a.get(key) == b.get(key) for key in a.keys() | b.keys())
        print(f"\n{family}: {equal} of {len(a.keys() | b.keys())} tensors equal")
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b:
                print(f"    {key}: only in {'llama.cpp' if key in b else 'edge'}'s")
            elif a[key] != b[key]:
                print(
                    f"    {key}: {a[key][:2]}, {b[key][:2]}{'' if a[key][:2] != b[key][:2] else ' different bits'}"
                )
        for note in done.warnings:
            print(f"    note: {note}")
        c, d = metadata(ours), metadata(theirs)
        differing = {
            key for key in c.keys() | d.keys() if key not in c or key not in d or not same(c[key], d[key])
        }
        print(
            f"    metadata: {len(c.keys() | d.keys()) - len(differing)} of {len(c.keys() | d.keys())} equal"
        )
        expected = EXPECTED | EXPECTED_IN.get(family, {})
        for key in sorted(differing):
            if key in expected:
                print(f"    {key}: {expected[key]}")
            elif key not in c or key not in d:
                print(
                    f"    {key}: only {'llama.cpp' if key in d else 'edge'}: {shown(c.get(key, d.get(key)))}"
                )
            else:
                print(f"    {key}: {first_difference(c[key], d[key])}")
        return equal == len(a.keys() | b.keys()) and differing <= expected.keys()


if __name__ == "__main__":
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "convert_hf_to_gguf.py").is_file():
        sys.exit(__doc__)
    from make_random import FAMILIES

    chosen = sys.argv[2:] or [*FAMILIES, *CASES]
    unequal = [family for family in chosen if not compare(family, Path(sys.argv[1]))]
    sys.exit(f"not equal: {', '.join(unequal)}" if unequal else 0)
