"""Compare each family's conversion with llama.cpp's own converter, on small random checkpoints.

    python scripts/compare_families.py LLAMA_CPP [FAMILY ...]

LLAMA_CPP is a source tree of llama.cpp of the version in llama-cpp-python. The sdist of llama-cpp-python has one in
vendor/llama.cpp. The families are those of tests/helpers/make_random.py, and the CASES of this file, each with a model
card. Both converters write bfloat16. The script compares every tensor's name, type, shape and bits, and all metadata.
It fails if an entry differs that is not in EXPECTED.

llama.cpp's converter reads a folder as it is. Where a case is a folder that disagrees with itself, or a base with an
adapter, it gets what transformers and peft make of it: they load it, and save it again. There both converters write
float32, and values may differ by TOLERANCE, because peft adds up in another order.

llama.cpp's converter needs two changes. Its table of tokenizer hashes does not know a tokenizer that was made here, so
it gets the name of the pre-tokenizer. If the published model has a tokenizer.model, it gets one with the pieces of
tokenizer.json, through a substitute for the sentencepiece package.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
SENTENCEPIECE = ("gemma3", "mistral")  # published with a tokenizer.model


@dataclass(frozen=True)
class Case:
    """A folder as people have it. `family`: the folder begins as this. `change` makes of it what edge gets.

    `adapter` makes an adapter of a folder (the first argument) with peft, and returns the model that it trained.
    `saved`: llama.cpp's converter gets the folder as transformers loads and saves it.
    """

    family: str
    change: Callable[[Path], object] = lambda folder: None
    adapter: Callable[[Path, Path], Any] | None = None
    saved: bool = False


CASES: dict[str, Case] = {
    "qwen3-tied": Case("qwen3", lambda folder: tied(folder, own=False)),
    "qwen3-tied-own": Case("qwen3", lambda folder: tied(folder, own=True)),
    "qwen3-output-alone": Case("qwen3", lambda folder: output_alone(folder), saved=True),
    "qwen3-index": Case("qwen3", lambda folder: with_index(folder)),
    "qwen3-dead-index": Case("qwen3", lambda folder: dead_index(folder), saved=True),
    "qwen3-yarn": Case("qwen3", lambda folder: yarn(folder), saved=True),
    "qwen3-removed": Case("qwen3", lambda folder: removed(folder)),
    "qwen3-named-tokens": Case("qwen3", lambda folder: named_tokens(folder)),
    "gemma3-image": Case("gemma3", lambda folder: image_token(folder)),
    "mistral-metaspace": Case("mistral", lambda folder: metaspace(folder)),
    "qwen3-lora": Case("qwen3", adapter=lambda base, to: trained(base, to)),
    "qwen3-lora-resized": Case("qwen3", adapter=lambda base, to: trained(base, to, rows=1088)),
    "qwen3-lora-tokens": Case("qwen3", adapter=lambda base, to: trained(base, to, rows=1024)),
    "qwen3-tied-lora-both": Case(
        "qwen3", lambda folder: tied(folder, own=False), lambda base, to: trained(base, to, BOTH)
    ),
    "qwen3-tied-lora-embeddings": Case(
        "qwen3", lambda folder: tied(folder, own=False), lambda base, to: trained(base, to, PAIR)
    ),
    "qwen3-tied-lora-kept": Case(
        "qwen3", lambda folder: tied(folder, own=False), lambda base, to: trained(base, to, BOTH | KEEP)
    ),
    "qwen3-tied-lora-resized": Case(
        "qwen3", lambda folder: tied(folder, own=False), lambda base, to: trained(base, to, BOTH, rows=1088)
    ),
    "qwen2-tied-lora-resized": Case(
        "qwen2", adapter=lambda base, to: trained(base, to, BOTH | KEEP, rows=1040)
    ),
    "qwen3-numbered": Case("qwen3", lambda folder: numbered(folder)),
    "qwen3moe-tied": Case("qwen3moe", lambda folder: tied(folder, own=False)),
    "qwen35-mtp-tied-own": Case("qwen35-mtp", lambda folder: tied(folder, own=True)),
    "gemma3-unnamed": Case("gemma3", lambda folder: unnamed(folder)),
    "gemma4-31b-lora": Case("gemma4-31b", adapter=lambda base, to: trained(base, to)),
    "qwen35-lora": Case("qwen35", adapter=lambda base, to: trained(base, to)),
    "mistral-tekken-lora-resized": Case(
        "mistral-tekken", adapter=lambda base, to: trained(base, to, BOTH, rows=1026)
    ),
    "gemma3-lora-embeddings": Case("gemma3", adapter=lambda base, to: trained(base, to, PAIR)),
}
# What an adapter trains, as peft.LoraConfig's options.
BOTH: dict[str, Any] = {"modules_to_save": ["embed_tokens", "lm_head"]}
PAIR: dict[str, Any] = {"target_modules": ["q_proj", "embed_tokens"]}
KEEP: dict[str, Any] = {"ensure_weight_tying": True}
TOLERANCE = 1e-6

EXPECTED = {
    "general.name": "the folder's name, unchanged or as a title",
    "tokenizer.ggml.eom_token_id": "a third EOS of generation_config.json",
    "tokenizer.ggml.eot_token_id": "a second EOS of generation_config.json, which llama.cpp's converter does not read",
    "tokenizer.ggml.add_eos_token": "false; llama.cpp's converter relies on the default, which is false",
    "edge.version": "only edge's files have it",
    "edge.crc32": "only edge's files have it",
    "edge.lora": "the adapter that edge merged",
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


def dead_index(folder: Path) -> None:
    """Add an index whose files are gone."""
    with_index(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model.safetensors", "model-00001-of-00002.safetensors"))


def output_alone(folder: Path) -> None:
    """Only the output matrix is stored, and config.json ties it to the embeddings."""
    from safetensors.torch import load_file, save_file

    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    change_json(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))


def yarn(folder: Path) -> None:
    """The usual edit for long contexts, on a folder that transformers 5 saved with rope_parameters."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    change_json(folder / "config.json", lambda config: config.update(rope_scaling=scaling))


def named_tokens(folder: Path) -> None:
    """Two tokens that only tokenizer_config.json knows, one with its id and one as a name."""
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    tokens = {"997": {"content": "<|tool_obs|>", **flags}}
    change_json(
        folder / "tokenizer_config.json",
        lambda config: config.update(added_tokens_decoder=tokens, additional_special_tokens=["<|agent|>"]),
    )


def numbered(folder: Path) -> None:
    """A token that somebody wrote into tokenizer.json with an id that transformers does not give it."""
    token = {"content": "<|tool_obs|>", "id": 1010, "special": True}

    def change(stored: dict[str, Any]) -> None:
        stored["added_tokens"].append({**stored["added_tokens"][0], **token})

    change_tokenizer(folder, change)


def unnamed(folder: Path) -> None:
    """tokenizer_config.json names no special tokens: those of the class count."""
    change_json(
        folder / "tokenizer_config.json",
        lambda config: [config.pop(f"{name}_token") for name in ("bos", "eos", "unk", "pad")],
    )


def trained(base: Path, folder: Path, options: dict[str, Any] | None = None, rows: int | None = None) -> Any:
    """Train an adapter (at random) with peft and save it; the model that was trained, merged into two matrices.

    `rows`: resize the vocabulary first, and save a tokenizer with further tokens beside the adapter.
    """
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows is not None:
        model.resize_token_embeddings(rows)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **(options or {})})
    live = peft.get_peft_model(model, config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in live.parameters():
            if value.requires_grad:
                value += torch.randn(value.shape, generator=random) / 10
    live.save_pretrained(folder)
    if rows is not None:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool_obs|>", "<|agent_end|>"]})
        tokenizer.eos_token = "<|agent_end|>"
        tokenizer.save_pretrained(folder)
    return live


def in_float32(folder: Path) -> None:
    """So that neither edge nor peft rounds what they merge."""
    from safetensors.torch import load_file, save_file

    stored = load_file(folder / "model.safetensors")
    save_file(
        {name: value.float() for name, value in stored.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def saved_by_transformers(folder: Path, to: Path) -> None:
    """A folder as transformers loads and saves it, with the tokenizer files of the first."""
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(to)
    copy_tokenizer(folder, to)


def saved_by_peft(folder: Path, adapter: Path, live: Any, to: Path) -> None:
    """The model that peft trained as a checkpoint. What its embeddings and its output compute, this holds.

    peft's own merge would change both matrices of a tied base where only one was trained.
    """
    import torch
    from safetensors.torch import save_file

    with torch.no_grad():
        embeddings = live.get_input_embeddings()
        scale = next((part.embed_scale for part in embeddings.modules() if hasattr(part, "embed_scale")), 1)
        rows = embeddings(torch.arange(live.config.vocab_size)) / scale
        output = live.base_model.model.lm_head(torch.eye(live.config.hidden_size)).T
    stored = {name: value.clone() for name, value in live.merge_and_unload().state_dict().items()}
    one = torch.equal(rows, output) and live.config.tie_word_embeddings
    stored |= {"model.embed_tokens.weight": rows, "lm_head.weight": output}
    if one:
        del stored["lm_head.weight"]
    to.mkdir()
    save_file(
        {name: value.contiguous() for name, value in stored.items()},
        to / "model.safetensors",
        {"format": "pt"},
    )
    shutil.copy(folder / "config.json", to)
    changed = {"tie_word_embeddings": one, "vocab_size": len(rows)}
    change_json(to / "config.json", lambda config: config.update(changed))
    copy_tokenizer(folder, to)
    copy_tokenizer(adapter, to)


def copy_tokenizer(folder: Path, to: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (folder / name).exists():
            shutil.copy(folder / name, to)


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


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


def peer(llama_cpp: Path, family: str, folder: Path, out: Path, kind: str) -> None:
    """Run llama.cpp's converter in a separate process with its own gguf package. `kind`: the type to write."""
    stand_in = out.parent / "stand-in"
    stand_in.mkdir()
    (stand_in / "sentencepiece.py").write_text(STAND_IN, encoding="utf-8")
    if family.startswith(SENTENCEPIECE) and not family.startswith("mistral-tekken"):
        write_pieces(folder)
    script = llama_cpp / "convert_hf_to_gguf.py"
    name = next((name for start, name in reversed(PRE.items()) if family.startswith(start)), "")
    code = PEER.replace("PRE", repr(name)).replace("SCRIPT", repr(str(script)))
    command = [sys.executable, "-c", code, str(folder), "--outfile", str(out), "--outtype", kind]
    if family.startswith("qwen35") and "-mtp" not in family:
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


def both(family: str, llama_cpp: Path, place: Path) -> tuple[Path, Path, Sequence[str], float]:
    """Convert in both ways, in `place`: edge's file, the other one, edge's notes, and how far values may differ."""
    from make_random import FAMILIES

    from edge.convert import convert

    # neutral names: the peer reads sizes and versions from the folder's name
    folder, adapter, other = (place / name for name in ("model", "adapter", "reference"))
    case = CASES.get(family, Case(family))
    FAMILIES[case.family](folder)
    case.change(folder)
    if case.adapter is not None:
        in_float32(folder)
        saved_by_peft(folder, adapter, case.adapter(folder, adapter), other)
    elif case.saved:
        saved_by_transformers(folder, other)
    else:
        other = folder
    same_folder = other == folder
    for given in {folder, other, *([adapter] if case.adapter is not None else [])}:
        (given / "README.md").write_text(CARD, encoding="utf-8")
    kind, lora = "bf16" if same_folder else "f32", None if case.adapter is None else adapter
    ours, theirs = place / "edge.gguf", place / "llama.cpp.gguf"
    done = convert(folder, lora=lora, quant=kind, out=ours, threads=1)
    peer(llama_cpp, family, other, theirs, kind)
    return ours, theirs, done.warnings, 0.0 if same_folder else TOLERANCE


def same_tensor(one: tuple[Any, ...] | None, other: tuple[Any, ...] | None, tolerance: float) -> bool:
    """Whether two tensors have the same type, shape and bits, or values that differ by `tolerance` at most."""
    if one is None or other is None or one[:2] != other[:2]:
        return False
    if one[2] == other[2]:
        return True
    if not tolerance:
        return False
    first, second = np.frombuffer(one[2], np.float32), np.frombuffer(other[2], np.float32)
    return bool(np.allclose(first, second, rtol=0, atol=tolerance))


def compare(family: str, llama_cpp: Path) -> bool:
    """Convert in both ways and print the differences. True if all tensors and metadata but those expected are equal."""
    with tempfile.TemporaryDirectory() as name:
        ours, theirs, notes, tolerance = both(family, llama_cpp, Path(name))
        a, b = tensors(ours), tensors(theirs)
        equal = sum(same_tensor(a.get(key), b.get(key), tolerance) for key in a.keys() | b.keys())
        within = f" within {tolerance}" if tolerance else ""
        print(f"\n{family}: {equal} of {len(a.keys() | b.keys())} tensors equal{within}")
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b:
                print(f"    {key}: only in {'llama.cpp' if key in b else 'edge'}'s")
            elif not same_tensor(a[key], b[key], tolerance):
                print(
                    f"    {key}: {a[key][:2]}, {b[key][:2]}{'' if a[key][:2] != b[key][:2] else ' different bits'}"
                )
        for note in notes:
            print(f"    note: {note}")
        return (equal == len(a.keys() | b.keys())) & compare_metadata(
            family, metadata(ours), metadata(theirs)
        )


def compare_metadata(family: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Print the entries that differ. True if all of them are expected."""
    keys = ours.keys() | theirs.keys()
    differing = {
        key for key in keys if key not in ours or key not in theirs or not same(ours[key], theirs[key])
    }
    print(f"    metadata: {len(keys) - len(differing)} of {len(keys)} equal")
    expected = EXPECTED | EXPECTED_IN.get(family, {})
    for key in sorted(differing):
        if key in expected:
            print(f"    {key}: {expected[key]}")
        elif key not in ours or key not in theirs:
            value = shown(ours.get(key, theirs.get(key)))
            print(f"    {key}: only {'llama.cpp' if key in theirs else 'edge'}: {value}")
        else:
            print(f"    {key}: {first_difference(ours[key], theirs[key])}")
    return differing <= expected.keys()


if __name__ == "__main__":
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "convert_hf_to_gguf.py").is_file():
        sys.exit(__doc__)
    from make_random import FAMILIES

    chosen = sys.argv[2:] or [*FAMILIES, *CASES]
    unequal = [family for family in chosen if not compare(family, Path(sys.argv[1]))]
    sys.exit(f"not equal: {', '.join(unequal)}" if unequal else 0)
