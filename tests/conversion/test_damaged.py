"""Test damaged and hostile checkpoints: one error line, exit code 1, no output, bounded time and memory.

    pytest tests/conversion/test_damaged.py
    EDGE_WRITE_DOCS=1 pytest tests/conversion/test_damaged.py    writes docs/damaged-input.md

CASES has the damage and a part of the line that edge must print. docs/damaged-input.md shows the whole lines.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Edge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.conversion.families import make_plan
from edge.conversion.tokenizer import make_vocabulary
from edge.errors import EdgeError
from edge.formats.checkpoint import open_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits, FIFOs and devices as Linux has them"),
]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "damaged-input.md"
MOST_MEMORY = 700 << 20  # bytes; the imports take about 200 MB of it

Damage = Callable[[Path], object]
NORM = "model.embedding_norm.weight"
GATE = "model.layers.1.feed_forward.gate.weight"


@pytest.fixture(scope="module")
def edge() -> Iterator[Edge]:
    with Edge.started() as started:
        yield started


# --- ways to damage ---


def config(**changes: Any) -> Damage:
    return lambda folder: rewrite(folder / "config.json", lambda values: values.update(changes))


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Damage:
    return lambda folder: rewrite(folder / "tokenizer.json", change)


def model(change: Callable[[dict[str, Any]], object]) -> Damage:
    """A change of tokenizer.json's model."""
    return tokenizer(lambda values: change(values["model"]))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def text(name: str, value: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(value if isinstance(value, bytes) else value.encode())


def index_alone(value: str) -> Damage:
    """An index in place of model.safetensors: beside a whole file, edge does not need it."""

    def make(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(value)

    return make


def link(name: str, target: str) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def fifo(name: str) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def read_weights(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_weights(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """A change of the weights' header."""

    def make(folder: Path) -> None:
        entries, data = read_weights(folder)
        change(entries)
        write_weights(folder / "model.safetensors", entries, data)

    return make


def raw_header(change: Callable[[bytes], bytes]) -> Damage:
    def make(folder: Path) -> None:
        entries, data = read_weights(folder)
        write_weights(folder / "model.safetensors", change(json.dumps(entries).encode()), data)

    return make


def entry(name: str, **fields: Any) -> Damage:
    return header(lambda entries: entries[name].update(fields))


def shift(name: str, by: int) -> Damage:
    """Move the place of a tensor in the file by some bytes."""
    return header(
        lambda entries: entries[name].update(data_offsets=[at + by for at in entries[name]["data_offsets"]])
    )


def renamed(name: str) -> Damage:
    return header(lambda entries: entries.update({name: entries.pop(NORM)}))


def value(name: str, number: bytes) -> Damage:
    """Replace the first value of a tensor by other bytes."""

    def make(folder: Path) -> None:
        entries, data = read_weights(folder)
        at = entries[name]["data_offsets"][0]
        write_weights(folder / "model.safetensors", entries, data[:at] + number + data[at + len(number) :])

    return make


def as_type(name: str, dtype: str, numbers: bytes) -> Damage:
    """Store a tensor at the end of the file in another type, filled with `numbers`."""

    def make(folder: Path) -> None:
        entries, data = read_weights(folder)
        count = 1
        for length in entries[name]["shape"]:
            count *= length
        begin, end = entries[name]["data_offsets"]
        for other in entries.values():
            if "data_offsets" in other and other["data_offsets"][0] >= end:
                other["data_offsets"] = [at - (end - begin) for at in other["data_offsets"]]
        data = data[:begin] + data[end:]
        entries[name].update(dtype=dtype, data_offsets=[len(data), len(data) + count * len(numbers)])
        write_weights(folder / "model.safetensors", entries, data + numbers * count)

    return make


def sharded(change: Callable[[Path, dict[str, str]], object]) -> Damage:
    """Store the weights in two files with an index, then change that."""

    def make(folder: Path) -> None:
        entries, data = read_weights(folder)
        entries.pop("__metadata__", None)
        names = sorted(entries)
        place: dict[str, str] = {}
        for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
            file, own, own_data = f"model-{number:05}-of-00002.safetensors", {}, b""
            for name in part:
                begin, end = entries[name]["data_offsets"]
                own[name] = entries[name] | {"data_offsets": [len(own_data), len(own_data) + end - begin]}
                own_data += data[begin:end]
                place[name] = file
            write_weights(folder / file, own, own_data)
        (folder / "model.safetensors").unlink()
        change(folder, place)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))

    return make


def same_tensor_twice(folder: Path, place: dict[str, str]) -> None:
    """Add a tensor of the second shard to the first."""
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    entries, data = _shard(first)
    more, _ = _shard(second)
    name = next(iter(more))
    size = more[name]["data_offsets"][1] - more[name]["data_offsets"][0]
    entries[name] = more[name] | {"data_offsets": [len(data), len(data) + size]}
    write_weights(first, entries, data + bytes(size))


def _shard(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def sparse(name: str, beginning: bytes, size: int) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(beginning)
        os.truncate(folder / name, size)

    return make


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def folder_in_place(name: str) -> Damage:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


def text_of(key: str, number: str) -> Damage:
    """Write a number in config.json with exactly this text."""

    def make(folder: Path) -> None:
        rewrite(folder / "config.json", lambda values: values.update({key: 987654321}))
        path = folder / "config.json"
        path.write_text(path.read_text(encoding="utf-8").replace("987654321", number), encoding="utf-8")

    return make


def nested(depth: int) -> dict[str, Any]:
    steps: dict[str, Any] = {"type": "ByteLevel"}
    for _ in range(depth):
        steps = {"type": "Sequence", "pretokenizers": [steps]}
    return steps


def gap(folder: Path) -> None:
    """Add 64 bytes before the first tensor."""
    entries, data = read_weights(folder)
    for name, fields in entries.items():
        if name != "__metadata__":
            fields["data_offsets"] = [at + 64 for at in fields["data_offsets"]]
    write_weights(folder / "model.safetensors", entries, bytes(64) + data)


def sparse_embeddings(folder: Path) -> None:
    """Add 5,000,000 tokens of zeros to the config and the weights, in a sparse file."""
    config(vocab_size=5_000_000)(folder)
    entries, data = read_weights(folder)
    size = 5_000_000 * 256 * 2
    at = len(data)
    name = "model.embed_tokens.weight"
    begin, end = entries[name]["data_offsets"]
    entries["unused.rotary_emb.inv_freq"] = {
        "dtype": "U8",
        "shape": [end - begin],
        "data_offsets": [begin, end],
    }
    entries[name].update(shape=[5_000_000, 256], data_offsets=[at, at + size])
    write_weights(folder / "model.safetensors", entries, data)
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size + size)


def longer(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(100))


def last_token(change: Callable[[str], str]) -> Damage:
    """Change the text of the last token that no merge needs."""

    def make(values: dict[str, Any]) -> None:
        parts = {part for merge in values["merges"] for part in merge}
        old = max(
            (token for token in values["vocab"] if token not in parts), key=lambda t: values["vocab"][t]
        )
        values["vocab"][change(old)] = values["vocab"].pop(old)
        values["merges"] = [merge for merge in values["merges"] if "".join(merge) != old]

    return model(make)


def entry_of(dtype: str, shape: list[int], entries: dict[str, Any]) -> dict[str, Any]:
    """An entry of no bytes at the end of the data."""
    end = max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    return {"dtype": dtype, "shape": shape, "data_offsets": [end, end]}


DEEP = b'{"a":' * 100_000
PADDING = {
    "strategy": {"Fixed": 2_000_000_000},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|pad|>",
}
LOOPING = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

# What is wrong: how to damage the checkpoint, and a part of the error line.
CASES: dict[str, tuple[Damage, str]] = {
    # --- the weights ---
    "a file cut in half": (
        lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size // 2),
        "truncated: ",
    ),
    "an empty file": (text("model.safetensors", b""), "truncated, or not a safetensors file (0 bytes)"),
    "a header longer than the file": (
        text("model.safetensors", struct.pack("<Q", 1 << 40) + b"{}"),
        "truncated, or not a safetensors file",
    ),
    "a header of 2 GB": (
        sparse("model.safetensors", struct.pack("<Q", 1 << 31) + b"{", 1 << 32),
        "a header of 2,147,483,648 bytes",
    ),
    "overlapping tensors": (shift(GATE, -64), "overlaps another tensor (64 bytes)"),
    "a gap between tensors": (gap, "leaves a gap before it (64 bytes)"),
    "bytes after the last tensor": (longer, "100 bytes after the last tensor"),
    "negative offsets": (entry(NORM, data_offsets=[-512, 0]), f"the header's entry for {NORM} is malformed"),
    "offsets in the wrong order": (entry(NORM, data_offsets=[512, 0]), "has -512 bytes"),
    "offsets beyond the file": (entry(NORM, data_offsets=[1 << 50, (1 << 50) + 512]), "truncated: "),
    "offsets that are not integers": (entry(NORM, data_offsets=[0.0, 512.0]), "is malformed"),
    "a shape that does not fit its bytes": (entry(NORM, shape=[255]), "which does not fit BF16 [255]"),
    "a shape of other lengths": (entry(GATE, shape=[256, 4]), "config.json asks for [4, 256]"),
    "a shape of a million dimensions": (entry(NORM, shape=[1 << 61] * 1_000_000), "is malformed"),
    "a negative length": (entry(NORM, shape=[-256]), "is malformed"),
    "a tensor without elements": (
        header(lambda e: e.update({"model.layers.0.conv.in_proj.bias": entry_of("BF16", [0], e)})),
        "layers.0.conv.in_proj.bias is not a tensor of a lfm2moe model",
    ),
    "a tensor that lost its elements": (as_type(NORM, "BF16", b""), "does not fit BF16 [256]"),
    "an unknown dtype": (entry(NORM, dtype="F4_X"), "is stored as F4_X; edge reads BF16, F16 and F32"),
    "a dtype that is a list": (entry(NORM, dtype=["BF16"]), "is malformed"),
    "weights in integers": (as_type(NORM, "I64", bytes(8)), "is stored as I64; edge reads BF16, F16 and F32"),
    "weights in 8 bits": (as_type(GATE, "F8_E4M3", bytes(1)), "the checkpoint is already quantized"),
    "NaN in bfloat16": (value(GATE, b"\xc0\x7f"), f"{GATE} holds NaN or Inf"),
    "infinity in bfloat16": (value(NORM, b"\x80\x7f"), f"{NORM} holds NaN or Inf"),
    "NaN in float16": (as_type(GATE, "F16", b"\x00\x7e"), f"{GATE} holds NaN or Inf"),
    "minus infinity in float32": (
        as_type(NORM, "F32", struct.pack("<f", -float("inf"))),
        f"{NORM} holds NaN or Inf",
    ),
    "two tensors of one name in a header": (
        raw_header(lambda raw: raw[:-1] + b', "' + NORM.encode() + b'": {}}'),
        f"the key '{NORM}' occurs twice",
    ),
    "two tensors of one name in two shards": (
        sharded(same_tensor_twice),
        "lists in model-00002-of-00002",
    ),
    "one tensor under two names": (
        header(lambda e: e.update({"model.language_model.embedding_norm.weight": entry_of("BF16", [0], e)})),
        "name the same tensor",
    ),
    "a tensor too few": (
        header(lambda e: e.update({NORM + "_": e.pop(NORM)})),
        "lacks embedding_norm.weight",
    ),
    "a NUL in a name": (renamed("a\0b"), r"'a\x00b' is not a tensor name"),
    "a name that steers the terminal": (
        renamed("\x1b]0;pwned\x07\nerror: all is well"),
        "is not a tensor name",
    ),
    "a name of 100,000 characters": (renamed("a" * 100_000), "is not a tensor name"),
    "half of a surrogate pair in a name": (renamed("a\ud800"), "is not a tensor name"),
    "metadata that is not text": (
        header(lambda e: e.update({"__metadata__": {"format": {"a": 1}}})),
        "its __metadata__ is not a map of strings",
    ),
    "a header that is not UTF-8": (
        raw_header(lambda raw: raw.replace(b"model.", b"mod\xff.")),
        "its header is not valid JSON",
    ),
    "a header that is a list": (raw_header(lambda raw: b"[" + raw + b"]"), "its header is not a JSON object"),
    "a header 100,000 levels deep": (raw_header(lambda raw: DEEP), "its header is not valid JSON"),
    "a pickle in place of safetensors": (pickled, "its weights are pickled (pytorch_model.bin)"),
    "a pickle under the name of safetensors": (
        text("model.safetensors", b"\x80\x02csubprocess\ncall\n" + bytes(100)),
        "is a Python pickle",
    ),
    "PyTorch's zip under the name of safetensors": (
        text("model.safetensors", b"PK\x03\x04" + bytes(100)),
        "is a PyTorch pickle",
    ),
    "a GGUF under the name of safetensors": (text("model.safetensors", b"GGUF" + bytes(100)), "is a GGUF"),
    "a Git LFS pointer in place of the weights": (
        text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 16\n"),
        "is a Git LFS pointer",
    ),
    "weights that are a FIFO": (fifo("model.safetensors"), "is not a regular file"),
    "weights that are a device": (link("model.safetensors", "/dev/zero"), "is not a regular file"),
    "weights that are a link to themselves": (
        link("model.safetensors", "model.safetensors"),
        "is a link that leads back to itself",
    ),
    "weights that are a link to nothing": (
        link("model.safetensors", "blob"),
        "is a link to a missing file",
    ),
    # --- the index ---
    "an index naming a missing shard": (
        sharded(lambda f, place: (f / "model-00002-of-00002.safetensors").unlink()),
        "model-00002-of-00002.safetensors: no such file",
    ),
    "an index naming a file outside the folder": (
        sharded(lambda f, place: place.update({NORM: "../other/model.safetensors"})),
        "which is not a plain safetensors file name",
    ),
    "an index naming a device": (
        sharded(lambda f, place: place.update({NORM: "/dev/zero"})),
        "which is not a plain safetensors file name",
    ),
    "an index naming a tensor that is not there": (
        sharded(lambda f, place: place.update({"x": "model-00001-of-00002.safetensors"})),
        "does not contain x, which model.safetensors.index.json lists",
    ),
    "an index that leaves out a tensor": (
        sharded(lambda f, place: place.pop(NORM)),
        f"contains {NORM}, which model.safetensors.index.json does not list",
    ),
    "an index without a map": (index_alone("{}"), "has no weight_map"),
    "an index with a key twice": (
        index_alone('{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}'),
        "the key 'a' occurs twice",
    ),
    # --- config.json ---
    "a configuration 100,000 levels deep": (text("config.json", DEEP), "cannot be read as JSON: "),
    "a configuration with a key twice": (
        text("config.json", '{"hidden_size": 256, "hidden_size": 512}'),
        "the key 'hidden_size' occurs twice",
    ),
    "a configuration that is not UTF-8": (text("config.json", b'{"a": "\xff"}'), "cannot be read as JSON: "),
    "a configuration that is a list": (text("config.json", "[]"), "holds a list, not a JSON object"),
    "a configuration of 1 GB": (sparse("config.json", b"{", 1 << 30), "holds 1,073,741,824 bytes"),
    "a number of 10,000 digits": (
        text("config.json", '{"vocab_size": ' + "9" * 10_000 + "}"),
        "cannot be read as JSON",
    ),
    "a vocabulary of 2**31": (config(vocab_size=1 << 31), "vocab_size is 2147483648, not an integer"),
    "a vocabulary of 2**31 - 1": (config(vocab_size=(1 << 31) - 1), "config.json asks for [2147483647, 256]"),
    "a vocabulary of 5,000,000": (sparse_embeddings, "vocab_size is 5,000,000; edge takes at most 4,194,304"),
    "a million layers": (config(num_hidden_layers=1_000_000), "llama.cpp takes at most 512"),
    "2**31 - 1 layers": (config(num_hidden_layers=(1 << 31) - 1), "llama.cpp takes at most 512"),
    "a million experts": (config(num_experts=1_000_000), "llama.cpp takes at most 1024"),
    "a width of 0": (config(hidden_size=0), "hidden_size is 0, not an integer of at least 1"),
    "an infinite width": (text_of("hidden_size", "1e999"), "hidden_size is inf, not an integer"),
    "an epsilon that is NaN": (text_of("norm_eps", "NaN"), "norm_eps is nan, not a positive number"),
    "an epsilon beyond float32": (config(norm_eps=1e300), "norm_eps is 1e+300, not a positive number"),
    "a frequency beyond every float": (
        config(rope_parameters={"rope_theta": 10**400, "rope_type": "default"}),
        "not a positive number",
    ),
    "a width that is a long text": (config(hidden_size="9" * 1_000_000), "hidden_size is '999"),
    "a configuration that is a FIFO": (fifo("config.json"), "config.json: is not a regular file"),
    "a configuration that is a link to itself": (link("config.json", "config.json"), "leads back to itself"),
    "a configuration that is a folder": (
        folder_in_place("config.json"),
        "config.json: is not a regular file",
    ),
    "generation settings that are a device": (
        link("generation_config.json", "/dev/zero"),
        "generation_config.json: is not a regular file",
    ),
    # --- the tokenizer ---
    "a tokenizer without merges": (model(lambda m: m.update(merges=[])), "tokenizer.json: has no merges"),
    "merges of tokens that are not there": (
        model(lambda m: m["merges"].append(["not", "there"])),
        "the tokenizers package cannot read it",
    ),
    "merges that are numbers": (model(lambda m: m.update(merges=[1, 2])), "merge 1 is not a pair of tokens"),
    "a token beyond the vocabulary": (
        model(lambda m: m["vocab"].update({"far": 1 << 31})),
        "token 'far' has id 2147483648, beyond config.json's vocab_size 1024; call model.resize_token_embeddings",
    ),
    "one id for two tokens": (model(lambda m: m["vocab"].update({"other": 5})), "id 5 is both"),
    "a token with a NUL": (last_token(lambda old: "a\0b"), "which llama.cpp cannot hold"),
    "half of a surrogate pair in a token": (
        last_token(lambda old: "\ud800"),
        "tokenizers package cannot read it",
    ),
    "a tokenizer that is another kind of model": (
        model(lambda m: m.update(type="WordPiece")),
        "is of type WordPiece; edge converts BPE tokenizers only",
    ),
    "a tokenizer 100,000 levels deep": (
        text("tokenizer.json", DEEP),
        "tokenizer.json: cannot be read as JSON",
    ),
    "a tokenizer 200 levels deep": (
        tokenizer(lambda t: t.update(pre_tokenizer=nested(200))),
        "the tokenizers package cannot read it",
    ),
    "a tokenizer of 1 GB": (sparse("tokenizer.json", b"{", 1 << 30), "holds 1,073,741,824 bytes"),
    "a pre-tokenizer whose regex never ends": (
        tokenizer(lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(a+)+$|(.*)*x")),
        "llama.cpp has no pre-tokenizer for (a+)+$|(.*)*x",
    ),
    "a Git LFS pointer in place of the tokenizer": (
        text("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 16\n"),
        "is a Git LFS pointer",
    ),
    "tokenizer settings that are a FIFO": (fifo("tokenizer_config.json"), "is not a regular file"),
    # --- the chat template ---
    "a chat template that loops": (text("chat_template.jinja", LOOPING), "it loops too often"),
    "a chat template that never returns": (
        text("chat_template.jinja", "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}"),
        "it calls itself without end",
    ),
    "a chat template that makes gigabytes": (
        text("chat_template.jinja", "{% for i in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}"),
        "too much text",
    ),
    "a chat template that accesses attributes": (
        text("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "it accesses __",
    ),
    "a chat template that does so in one case only": (
        text("chat_template.jinja", "{% if messages | length > 99 %}{{ messages['__class__'] }}{% endif %}x"),
        "it accesses __",
    ),
    "a chat template that is a device": (link("chat_template.jinja", "/dev/zero"), "is not a regular file"),
    "a chat template of 100 MB": (
        sparse("chat_template.jinja", b"x", 100_000_000),
        "holds 100,000,000 bytes",
    ),
    "a chat template that is not UTF-8": (text("chat_template.jinja", b"\xff\xfe"), "cannot be read"),
    "a chat template with a NUL": (text("chat_template.jinja", "a\0b"), "holds a NUL"),
    # --- no checkpoint at all ---
    "an empty folder": (lambda f: [path.unlink() for path in f.iterdir()], "no config.json"),
    "a LoRA adapter in place of its base": (
        lambda f: [(f / "config.json").rename(f / "adapter_config.json")],
        "is a LoRA adapter; name its base with --base, or merge it: convert its base with --lora",
    ),
}


# --- the tests ---


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, str]]:
    """The lines in docs/damaged-input.md. With EDGE_WRITE_DOCS, edge's lines are written to that page."""
    if "EDGE_WRITE_DOCS" not in os.environ:
        yield dict(
            re.findall(r"^\| (.+?) \| `+ ?(.+?) ?`+ \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        )
        return
    lines: dict[str, str] = {}
    yield lines
    before = PAGE.read_text(encoding="utf-8").partition("| input |")[0]
    rows = [f"| {name} | `` {line} `` |" for name, line in lines.items()]
    PAGE.write_text(before + "\n".join(["| input | error line |", "|---|---|", *rows, ""]), encoding="utf-8")


def check(
    edge: Edge,
    page: dict[str, str],
    name: str,
    wanted: str,
    folder: Path,
    out: Path,
    *options: str,
    **limits: Any,
) -> None:
    """Convert, and expect one line as on the page, exit code 1, no new file and little memory."""
    before = sorted(out.rglob("*"))
    ended = edge.run("convert", folder, "--quant", "Q8_0", "--out", out / "x.gguf", *options, **limits)
    assert ended.status == 1, ended
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.endswith("\n")
    line = ended.err[len("error: ") : -1]
    assert line.isprintable(), line
    assert len(line) <= 2003
    assert wanted in line
    assert sorted(out.rglob("*")) == before
    assert ended.peak < MOST_MEMORY
    line = line.replace(str(folder), "model").replace(str(out), "out")
    if len(line) > 240:
        line = f"{line[:160]} … {line[-60:]}"
    if "EDGE_WRITE_DOCS" in os.environ:
        page[name] = line
    assert page.get(name) == line


@pytest.mark.parametrize("name", CASES)
def test_damaged_checkpoint(
    name: str, edge: Edge, page: dict[str, str], random_small_moe_folder: Path, tmp_path: Path
) -> None:
    damage, wanted = CASES[name]
    assert wanted
    folder, out = Path(shutil.copytree(random_small_moe_folder, tmp_path / "model")), tmp_path / "out"
    out.mkdir()
    damage(folder)
    check(edge, page, name, wanted, folder, out)


def test_undamaged_checkpoint(edge: Edge, random_small_moe_folder: Path, tmp_path: Path) -> None:
    """The same command succeeds without damage, so each case above fails because of its damage."""
    harmless = (
        lambda folder: None,
        sharded(lambda folder, place: None),
        as_type(NORM, "F32", bytes(4)),
        tokenizer(
            lambda values: values.update(padding=PADDING)
        ),  # which would make 2,000,000,000 tokens of any text
    )
    for damage in harmless:
        folder = Path(shutil.copytree(random_small_moe_folder, tmp_path / "model", dirs_exist_ok=True))
        damage(folder)
        ended = edge.run("convert", folder, "--quant", "Q8_0", "--out", tmp_path / "x.gguf")
        usual = re.compile(r"note: (its chat template .*|.*x\.gguf: was there before; .*)")
        notes = [line for line in ended.err.splitlines() if not usual.fullmatch(line)]
        assert (ended.status, notes) == (0, []), ended
        assert ended.peak < MOST_MEMORY
        shutil.rmtree(folder)


OUTPUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an output that is a FIFO": (
        lambda out: os.mkfifo(out / "x.gguf"),
        "is not a regular file",
    ),
    "an output that is a device": (
        lambda out: (out / "x.gguf").symlink_to("/dev/full"),
        "is not a regular file",
    ),
    "an output where nothing can be written": (
        lambda out: (out / "x.gguf").symlink_to("/proc/x.gguf"),
        "cannot be written: ",
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_that_cannot_be_written(
    name: str, edge: Edge, page: dict[str, str], random_small_moe_folder: Path, tmp_path: Path
) -> None:
    damage, wanted = OUTPUTS[name]
    out = tmp_path / "out"
    out.mkdir()
    damage(out)
    check(edge, page, name, wanted, random_small_moe_folder, out)


@pytest.mark.parametrize("size", [4096, 100_000, 1_000_000])
def test_no_space_left(
    size: int, edge: Edge, page: dict[str, str], random_small_moe_folder: Path, tmp_path: Path
) -> None:
    """No file can be larger than `size`, although the disk reports free space: the header or the data fails."""
    out = tmp_path / "out"
    out.mkdir()
    check(edge, page, "no space left", "cannot be written: ", random_small_moe_folder, out, file_size=size)


def test_a_disk_that_is_full(
    edge: Edge, page: dict[str, str], random_small_moe_folder: Path, tmp_path: Path
) -> None:
    """A file system of 1 MB, if this user can mount one."""
    out = tmp_path / "out"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(out)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        check(
            edge,
            page,
            "a disk that is full",
            "needed; choose another place with --out",
            random_small_moe_folder,
            out,
        )
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_page_lists_every_case(page: dict[str, str]) -> None:
    listed = re.findall(r"^\| (.+?) \| `", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [*CASES, *OUTPUTS, "no space left", "a disk that is full"]


# --- random damage ---

SMALL_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
flips = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=3)
NOISE = [
    "null",
    "[]",
    "{}",
    "-1",
    "1e999",
    "NaN",
    "true",
    '""',
    '"\\ud800"',
    "0",
    "9" * 30,
    "1.5",
    '"x"',
    "[[]]",
]


def opened(folder: Path) -> str:
    """Read a folder: "" if it is accepted, otherwise its error line. Any other exception fails the test."""
    try:
        checkpoint = open_checkpoint(folder)
        plan = make_plan(checkpoint)
        make_vocabulary(checkpoint, plan.n_vocab)
    except EdgeError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 3000
        return str(error)
    return ""


@pytest.fixture(scope="module")
def victim(random_small_moe_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in two shards. Tests overwrite its small files and restore them."""
    folder = Path(shutil.copytree(random_small_moe_folder, tmp_path_factory.mktemp("victim") / "model"))
    sharded(lambda folder, place: None)(folder)
    assert opened(folder) == ""
    return folder


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*SMALL_FILES, "model.safetensors.index.json"]), flips=flips)
def test_flipped_bytes_in_small_files(victim: Path, name: str, flips: list[tuple[int, int]]) -> None:
    whole = (victim / name).read_bytes()
    data = bytearray(whole)
    for at, mask in flips:
        data[at % len(data)] ^= mask
    try:
        (victim / name).write_bytes(data)
        opened(victim)
    finally:
        (victim / name).write_bytes(whole)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=flips)
def test_flipped_bytes_in_a_header(victim: Path, flips: list[tuple[int, int]]) -> None:
    path = victim / "model-00001-of-00002.safetensors"
    length = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    with path.open("r+b") as file:
        whole = file.read(length)
        data = bytearray(whole)
        for at, mask in flips:
            data[at % length] ^= mask
        try:
            file.seek(0)
            file.write(data)
            file.flush()
            opened(victim)
        finally:
            file.seek(0)
            file.write(whole)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(SMALL_FILES), data=st.data())
def test_other_values_in_small_files(victim: Path, name: str, data: st.DataObject) -> None:
    """One value of the JSON, at any depth, becomes another kind of value."""
    whole = (victim / name).read_text(encoding="utf-8")
    values = json.loads(whole)
    holder, key = values, data.draw(st.sampled_from(sorted(values)))
    while isinstance(holder[key], dict | list) and holder[key] and data.draw(st.integers(0, 3)):
        holder = holder[key]
        key = data.draw(
            st.sampled_from(sorted(holder)) if isinstance(holder, dict) else st.integers(0, len(holder) - 1)
        )
    holder[key] = "<here>"
    try:
        (victim / name).write_text(json.dumps(values).replace('"<here>"', data.draw(st.sampled_from(NOISE))))
        opened(victim)
    finally:
        (victim / name).write_text(whole, encoding="utf-8")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["tokenizer.json", "tokenizer_config.json", "config.json"]), flips=flips)
def test_flipped_bytes_through_the_command(
    victim: Path, edge: Edge, name: str, flips: list[tuple[int, int]]
) -> None:
    """The whole command, with llama.cpp's check of the vocabulary: a model, or one line and no file."""
    whole = (victim / name).read_bytes()
    data = bytearray(whole)
    for at, mask in flips:
        data[at % len(data)] ^= mask
    out = victim.parent / "x.gguf"
    try:
        (victim / name).write_bytes(data)
        ended = edge.run("convert", victim, "--quant", "f16", "--out", out)
    finally:
        (victim / name).write_bytes(whole)
    assert (ended.status, out.exists()) in ((0, True), (1, False)), ended
    assert ended.err.count("\n") == 1 or ended.status == 0
    assert ended.peak < MOST_MEMORY
    assert [path.name for path in victim.parent.iterdir() if path.name != "x.gguf"] == ["model"]
    out.unlink(missing_ok=True)
