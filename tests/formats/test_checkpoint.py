"""Reads checkpoints: damaged local folders, and a hub over HTTP with gated repositories, tokens and a cache.

pytest tests/formats/test_checkpoint.py
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_hub import COMMIT, LocalHub, local_hub

from edge.errors import CheckpointError
from edge.formats.checkpoint import open_checkpoint


def write_safetensors(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A minimal checkpoint with one tensor of each dtype that edge reads."""
    path = tmp_path / "my model"
    path.mkdir()
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (path / "tokenizer.json").write_text('{"model": {}}')
    values = np.array([1.0, -2.0, 0.5])
    bfloat16 = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    data = bfloat16.tobytes() + values.astype(np.float16).tobytes() + values.astype(np.float32).tobytes()
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry("BF16", [3], 0, 6),
        "b": entry("F16", [3, 1], 6, 12),
        "c": entry("F32", [1, 3], 12, 24),
        "none": entry("F32", [0, 4], 24, 24),
    }
    write_safetensors(path / "model.safetensors", header, data)
    return path


def refused(folder: Path | str) -> str:
    """The error line of opening the checkpoint."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_every_dtype_from_disk(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.name == "my-model"
    assert checkpoint.dtype == "F32"
    tensors = checkpoint.tensors
    assert tensors["a"].read().dtype == np.uint16  # the bits of bfloat16
    assert (tensors["a"].read().astype(np.uint32) << 16).view(np.float32).tolist() == [1.0, -2.0, 0.5]
    assert tensors["b"].read().tolist() == [[1.0], [-2.0], [0.5]]
    assert tensors["c"].read().tolist() == [[1.0, -2.0, 0.5]]
    assert isinstance(tensors["c"].read(), np.memmap)
    assert tensors["none"].read().shape == (0, 4)


def test_reads_shards(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "model-00001-of-00002.safetensors").write_bytes(data)
    write_safetensors(
        folder / "model-00002-of-00002.safetensors", {"d": entry("F16", [2], 0, 4)}, b"\0\x3c\0\x40"
    )
    weight_map = dict.fromkeys(("a", "b", "c", "none"), "model-00001-of-00002.safetensors")
    weight_map["d"] = "model-00002-of-00002.safetensors"
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    tensors = open_checkpoint(folder).tensors
    assert set(tensors) == {"a", "b", "c", "d", "none"}
    assert tensors["d"].read().tolist() == [1.0, 2.0]

    index.write_text(json.dumps({"weight_map": {**weight_map, "e": "model-00002-of-00002.safetensors"}}))
    assert "does not contain e" in refused(folder)
    for name in ("../../etc/passwd", "../a.safetensors", "*", "*.safetensors", "..", "", ".safetensors\n", 3):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert "not a plain safetensors file name" in refused(folder)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: no such file" in refused(folder)


def test_one_file_beside_an_index(folder: Path) -> None:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    shard = folder / "model-00001-of-00001.safetensors"
    weight_map = dict.fromkeys(("a", "b", "c", "none"), shard.name)
    index.write_text(json.dumps({"weight_map": weight_map}))
    opened = open_checkpoint(folder)  # the shard is gone
    assert {tensor.file for tensor in opened.tensors.values()} == {single}
    assert "both model.safetensors and model.safetensors.index.json" in opened.notes[0]
    assert f"{shard.name}, which is missing" in opened.notes[0]

    alone = dict.fromkeys(("a", "b"), single.name)  # fewer tensors than the file has, or more
    for text in (
        "",
        "{}",
        '{"weight_map": {"a": 1}}',
        *(json.dumps({"weight_map": one}) for one in (alone, alone | {"z": single.name})),
    ):
        index.write_text(text)
        opened = open_checkpoint(folder)
        assert len(opened.tensors) == 4 and len(opened.notes) == 1 and "\n" not in opened.notes[0]

    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, single.name)}))
    assert not open_checkpoint(folder).notes

    index.write_text(json.dumps({"weight_map": weight_map}))
    shard.write_bytes(single.read_bytes())
    assert "weights twice" in open_checkpoint(folder).notes[0]
    data = bytearray(single.read_bytes())
    data[-1] ^= 1  # of c
    shard.write_bytes(data)
    line = refused(folder)
    assert "model.safetensors and the files that model.safetensors.index.json lists differ in c" in line
    for damaged in (bytes(data[:-1]), b""):  # transformers does not look at the shards
        shard.write_bytes(damaged)
        opened = open_checkpoint(folder)
        assert {tensor.file for tensor in opened.tensors.values()} == {single}
        assert f"because {shard}: truncated" in opened.notes[0]
    write_safetensors(shard, {"a": entry("F16", [1], 0, 2)}, b"\0\0")
    index.write_text(json.dumps({"weight_map": {"a": shard.name}}))
    assert "differ in b" in refused(folder)


def test_a_folder_that_transformers_saved_twice(random_llama_folder: Path, tmp_path: Path) -> None:
    """The weights that edge reads are those that transformers loads."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(random_llama_folder)
    shutil.copytree(random_llama_folder, tmp_path / "twice")
    model.save_pretrained(tmp_path / "twice", max_shard_size="50KB")
    (tmp_path / "twice" / "model.safetensors").unlink(missing_ok=True)
    with torch.no_grad():
        model.model.norm.weight += 1
    model.save_pretrained(tmp_path / "twice")  # removes the shards; the index may stay
    (tmp_path / "twice" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}})
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    read = open_checkpoint(tmp_path / "twice").tensors["model.norm.weight"].read()
    values = (read.astype(np.uint32) << 16).view(np.float32)  # it is BF16
    assert values.tolist() == loaded.model.norm.weight.float().tolist()


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{,"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "not a JSON object"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"), "save_pretrained"),
        (lambda f: (f / "tokenizer.json").write_text(""), "cannot be read as JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "its weights are pickled (pytorch_model.bin)",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
            "adapter_model.safetensors",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"),
            "it is a part of a checkpoint: fetch model.safetensors.index.json",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "consolidated.safetensors"),
            "it is in Mistral's own format: fetch the files that transformers reads",
        ),
        (lambda f: os.truncate(f / "model.safetensors", 5), "truncated"),
        (lambda f: os.truncate(f / "model.safetensors", 60), "truncated"),
        (
            lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 1),
            "truncated",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 300), "truncated, or not a safetensors"),
        (lambda f: write_safetensors(f / "model.safetensors", b"nonsense"), "not valid JSON"),
        (lambda f: write_safetensors(f / "model.safetensors", b"[" * 100_000), "not valid JSON"),
        (lambda f: write_safetensors(f / "model.safetensors", b"[]"), "not a JSON object"),
        (lambda f: write_safetensors(f / "model.safetensors", {"a": 1}), "malformed"),
        (lambda f: write_safetensors(f / "model.safetensors", {"a": entry("F32", [-1], 0, 4)}), "malformed"),
        (
            lambda f: write_safetensors(f / "model.safetensors", {"a": entry("F32", [1], 4, 0)}),
            "does not fit",
        ),
        (
            lambda f: write_safetensors(f / "model.safetensors", {"a": entry("F32", [2], 0, 4)}),
            "does not fit",
        ),
        (
            lambda f: write_safetensors(f / "model.safetensors", {"a": entry("F4", [8], 0, 4)}, b"1234"),
            "stored as F4",
        ),
        (
            lambda f: write_safetensors(f / "model.safetensors", {"a": entry("F32", [1], 9, 13)}, b"1234"),
            "truncated",
        ),
    ],
)
def test_damage_is_one_clear_line(folder: Path, damage: Damage, problem: str) -> None:
    damage(folder)
    message = refused(folder)
    assert problem in message
    assert str(folder) in message


def test_dtypes_that_are_not_weights_are_refused_on_reading(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", {"a": entry("I64", [1], 0, 8)}, bytes(8))
    with pytest.raises(CheckpointError, match="a is stored as I64"):
        open_checkpoint(folder).tensors["a"].read()


def test_sources_that_are_no_checkpoint(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nothing")
    assert "no such folder" in refused("just-a-name")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert "is a file" in refused(file)
    assert "the source is empty" in refused("")
    assert "no such folder" in refused("~nobody-of-that-name/x")


def test_chat_template_in_each_place(folder: Path) -> None:
    def template(**settings: Any) -> str | None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return open_checkpoint(folder).chat_template

    assert template() is None
    assert template(chat_template="one") == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    assert template(chat_template=named) == "three"
    assert template(chat_template=named[:1]) is None
    (folder / "chat_template.jinja").write_text("four\n")
    assert template(chat_template="one") == "four\n"
    (folder / "chat_template.jinja").write_text("")
    assert template(chat_template="one") == ""
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("five")
    assert template(chat_template="one") == ""
    (folder / "chat_template.jinja").unlink()
    assert template(chat_template="one") is None
    (folder / "additional_chat_templates" / "rag.jinja").unlink()
    (folder / "chat_template.json").write_text('{"chat_template": {"default": "six"}}')
    assert template(chat_template="one") == "one"
    assert template() == "six"
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    assert "chat_template.jinja: cannot be read" in refused(folder)


def test_special_tokens_where_older_checkpoints_keep_them(folder: Path) -> None:
    config, older = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    older.write_text('{"eos_token": {"content": "</s>"}}')
    assert open_checkpoint(folder).tokenizer_config == {"eos_token": {"content": "</s>"}}
    config.write_text('{"eos_token": "<end>", "added_tokens_decoder": {}}')
    assert open_checkpoint(folder).tokenizer_config["eos_token"] == "<end>"
    config.write_text("{}")
    older.write_text("[]")
    assert "special_tokens_map.json: holds a list" in refused(folder)


# --- the hub ---

SCRIPT = """
import json, sys
from edge.formats.checkpoint import open_checkpoint
from edge.errors import CheckpointError
for options in json.loads(sys.argv[1]):
    try:
        checkpoint = open_checkpoint(**options)
        print("opened", checkpoint.name, len(checkpoint.tensors))
    except CheckpointError as error:
        print("error", error)
"""


@pytest.fixture
def start_hub() -> Iterator[Callable[..., LocalHub]]:
    with ExitStack() as stack:
        yield lambda folder, **faults: stack.enter_context(local_hub({"org/name": folder}, **faults))


def ask(hub: LocalHub | None, home: Path, *options: dict[str, Any], token: str = "") -> list[str]:
    """The output of open_checkpoint in a new process with this hub (None: an address where nothing listens)."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if token:
        env["HF_TOKEN"] = token
    command = [sys.executable, "-c", SCRIPT, json.dumps(options)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.splitlines()


@pytest.mark.slow
def test_hub_id_is_fetched_once_and_then_works_offline(
    folder: Path, tmp_path: Path, start_hub: Callable[..., LocalHub]
) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "LICENSE").write_text("not needed")
    (folder / "consolidated.safetensors").write_bytes(b"not needed")
    (folder / "modeling_custom.py").write_text("raise SystemExit('checkpoint code was run')")
    home = tmp_path / "home"
    online, offline = {"source": "org/name"}, {"source": "org/name", "offline": True}
    missing = {"source": "org/nothing"}

    hub = start_hub(folder)
    before, opened, again = ask(hub, home, offline, online, offline)
    assert before.startswith("error org/name is not complete in the local Hugging Face cache")
    assert opened == again == "opened name 4"
    assert set(hub.asked) == {"README.md", "config.json", "tokenizer.json", "model.safetensors"}

    unknown, revision, commit = ask(
        hub, home, missing, {**online, "revision": "nope"}, {**online, "revision": COMMIT}
    )
    assert "org/nothing is neither a local path nor a public hub repository" in unknown
    assert "org/name (revision nope) has no such revision" in revision
    assert commit == "opened name 4"

    cached, unreachable = ask(None, home, online, missing)
    assert cached == "opened name 4"  # no network: from the cache
    assert "cannot be fetched and is not in the local cache" in unreachable


@pytest.mark.slow
def test_gated_repository_needs_a_token(
    folder: Path, tmp_path: Path, start_hub: Callable[..., LocalHub]
) -> None:
    hub = start_hub(folder, token="hf_right")
    online = {"source": "org/name"}
    (gated,) = ask(hub, tmp_path / "home", online, token="hf_wrong")
    assert "org/name is gated; accept its terms" in gated
    assert ask(hub, tmp_path / "home", online, token="hf_right") == ["opened name 4"]


@pytest.mark.slow
def test_sharded_repository_fetches_the_shards_of_its_index(
    folder: Path, tmp_path: Path, start_hub: Callable[..., LocalHub]
) -> None:
    shutil.move(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(("a", "b", "c", "none"), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub = start_hub(folder)
    assert ask(hub, tmp_path / "home", {"source": "org/name"}) == ["opened name 4"]
    assert "model-00001-of-00001.safetensors" in hub.asked


@pytest.mark.slow
def test_a_repository_with_an_index_of_absent_shards(
    folder: Path, tmp_path: Path, start_hub: Callable[..., LocalHub]
) -> None:
    index = {"weight_map": dict.fromkeys(("a", "b", "c", "none"), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    hub = start_hub(folder)
    assert ask(hub, tmp_path / "home", {"source": "org/name"}) == ["opened name 4"]
    assert "model.safetensors" in hub.asked
