"""The facts of a model card in a GGUF: those that llama.cpp's converter writes; no card stops a conversion.

    pytest tests/conversion/test_model_card.py

The comparison needs the sdist of llama-cpp-python in build/sdist, where `make test` puts it.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from make_adapter import make_adapter

from edge.conversion.inspect import inspect
from edge.convert import convert, convert_adapter
from edge.formats.model_card import read_card

RICH = """---
license: other
license_name: a-licence
license_link: https://example.org/licence
language:
- en
- ko
- no
tags: [terminal, agent]
pipeline_tag: text-generation
base_model:
- org-name/base-model-8b-v0.3-instruct
- https://huggingface.co/other/merged-2.0
datasets:
- someone/data-set
- name: By hand
  url: https://example.org/data
model-index:
- name: x
  results: []
---
# A model

license: not this one
"""
CARDS = {
    "rich": RICH,
    "plain": "---\nlicense: apache-2.0\n---\n",
    "two licences": "---\nlicense: [mit, apache-2.0]\n---\n",
    "one text each": "---\ntags: one\nlanguage: de\nbase_model: a/b\ndatasets: c/d\n---\n",
    "tabs": "---\ntags:\n\t- a\nlicense: mit\n---\n",
    "other names": "---\nbase_models: [a/b-7B]\ndataset: x/y\nlanguages: [fr]\n---\n",
    "an address": "---\nbase_model: https://example.org/model\n---\n",
    "a sentence": "---\nbase_model: My own base\n---\n",
    "empty lists": "---\ntags: []\nbase_model: []\nlicense: mit\n---\n",
    "korean": "---\ntags: [한국어]\nlicense: mit\n---\n",
    "windows": "---\r\nlicense: mit\r\ntags:\r\n- a\r\n---\r\ntext\r\n",
    "anchors": "---\nbase_model: &id a/b\ntags: [x, *id]\n---\n",
    "no end": "---\nlicense: mit\ntags: [a]\n",
    "the end of YAML": "---\nlicense: mit\n...\n",
    "no facts": "# A model\n\nlicense: mit\n",
    "nothing": "",
    "facts of nothing": "---\n---\n",
}
KEYS = ("general.license", "general.tags", "general.languages", "general.base_model", "general.dataset")
# What llama.cpp's converter does with a card, without the rest of it.
PEER = """
import json, sys
from pathlib import Path
from gguf import GGUFWriter, GGUFReader, Metadata
found = {}
for folder in map(Path, sys.argv[1:]):
    out = folder / "out.gguf"
    writer = GGUFWriter(out, "llama")
    Metadata.load(None, folder, None, 1000).set_gguf_meta_model(writer)
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_ti_data_to_file(); writer.close()
    fields = GGUFReader(out).fields
    found[folder.name] = {key: fields[key].contents() for key in fields if key.startswith("general.")}
print(json.dumps(found))
"""


def facts(path: Path) -> dict[str, Any]:
    fields = GGUFReader(path).fields
    return {key: fields[key].contents() for key in fields if key.startswith(KEYS)}


def python(sources: Path, code: str, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (sources / "gguf-py", sources)))}
    run = subprocess.run([sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_each_card_as_llama_cpps_converter_takes_it(llama_cpp_sources: Path, tmp_path: Path) -> None:
    for name, card in CARDS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_bytes(card.encode())
    theirs = json.loads(python(llama_cpp_sources, PEER, *(str(tmp_path / name) for name in CARDS)))
    for name in CARDS:
        found = read_card(tmp_path / name)
        assert found.notes == ()
        assert dict(found.entries) == {k: v for k, v in theirs[name].items() if k.startswith(KEYS)}, name
    assert len(dict(read_card(tmp_path / "rich").entries)) > 12


@pytest.fixture
def with_card(random_lfm2_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a small checkpoint with a model card."""

    def make(card: str) -> Path:
        folder = Path(shutil.copytree(random_lfm2_folder, tmp_path / "checkpoint"))
        (folder / "README.md").write_text(card, encoding="utf-8")
        return folder

    return make


@pytest.mark.slow
def test_the_whole_converter_writes_the_same(
    with_card: Callable[[str], Path], llama_cpp_sources: Path, tmp_path: Path
) -> None:
    folder = with_card(RICH)
    code = (
        "import runpy, sys, conversion.base\n"
        "conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'lfm2'\n"
        f"runpy.run_path({str(llama_cpp_sources / 'convert_hf_to_gguf.py')!r}, run_name='__main__')"
    )
    theirs = tmp_path / "theirs.gguf"
    python(llama_cpp_sources, code, str(folder), "--outfile", str(theirs), "--outtype", "bf16")
    ours = convert(folder, quant="Q8_0", out=tmp_path / "ours.gguf", threads=1)
    assert facts(ours.path) == facts(theirs)
    assert "licence other" in inspect(ours.path).to_text()


@pytest.mark.slow
def test_an_adapter_names_its_licence_and_its_base(with_card: Callable[[str], Path], tmp_path: Path) -> None:
    base = with_card(RICH)
    folder = make_adapter(base, tmp_path / "ad")
    card = "---\nlicense: mit\nbase_model: some/other\ndatasets: a/rows\n---\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    found = facts(convert_adapter(folder, base, out=tmp_path / "ours.gguf").path)
    assert (found["general.license"], found["general.dataset.0.name"]) == ("mit", "Rows")
    assert (found["general.base_model.count"], found["general.base_model.0.name"]) == (1, base.name)


@pytest.mark.slow
def test_a_merged_model_has_the_facts_of_the_adapters_card(
    with_card: Callable[[str], Path], llama_cpp_sources: Path, tmp_path: Path
) -> None:
    """As llama.cpp's converter takes that card; what it does not say is the base's."""
    base = with_card("---\nlicense: mit\ntags: [base]\nlanguage: de\nbase_model: a/first\n---\n")
    folder = make_adapter(base, tmp_path / "ad")
    assert facts(convert(base, lora=folder, quant="BF16", out=tmp_path / "none.gguf").path) == {
        key: value for key, value in read_card(base).entries
    }
    for name, card in (("rich", RICH), ("peft", "---\nbase_model: some/base\ntags: [lora, peft]\n---\n")):
        (folder / "README.md").write_text(card, encoding="utf-8")
        theirs = json.loads(python(llama_cpp_sources, PEER, str(folder)))["ad"]
        (folder / "out.gguf").unlink()
        wanted = {key: value for key, value in theirs.items() if key.startswith(KEYS)}
        done = convert(base, lora=folder, quant="BF16", out=tmp_path / f"{name}.gguf")
        found = facts(done.path)
        assert found.items() >= wanted.items()
        assert found["general.license"] == ("other" if name == "rich" else "mit")
        further = {key: value for key, value in found.items() if key not in wanted}
        assert set(further) == (set() if name == "rich" else {"general.license", "general.languages"})
    (folder / "README.md").write_text("---\nlicense: [\n---\n", encoding="utf-8")
    done = convert(base, lora=folder, quant="BF16", out=tmp_path / "bad.gguf")
    assert any(str(folder / "README.md") in line for line in done.warnings)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklm"))
MERGES = "a: &a {x: y}\n" + "".join(
    f"{b}: &{b}\n  <<: [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi")
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ("license: [", "cannot be read"),
        ("license: !!python/object/apply:os.system ['touch x']", "cannot be read"),
        ("tags: " + "[" * 50_000, "cannot be read"),
        ("license: " + "9" * 5000, "cannot be read"),
        ("a: " + "x" * (1 << 17), "edge reads at most 131,072"),
        (MERGES, "a YAML merge"),
        (MERGES.replace("<<", "'<<'"), "a YAML merge"),
        (BOMB + "tags: *m", ""),
        ("tags: &a [x, *a]", ""),
        ("base_model: &a [*a, {name: *a}]", ""),
        ("- a list", ""),
        ("license: {a: b}\ntags: [{a: b}, [c]]\nbase_model: [null, [x], 7]", ""),
        ('license: "a\\0b\\uD800c"', ""),
    ],
)
def test_a_hostile_card_costs_a_note(
    facts: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(f"---\n{facts}\n---\n", encoding="utf-8")
    begin = time.process_time()
    found = read_card(tmp_path)
    assert time.process_time() - begin < 5
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.glob("x"))
    if said:
        (note,) = found.notes
        assert said in note and str(tmp_path / "README.md") in note and "\n" not in note
        assert note.endswith("the GGUF records no licence, tags or sources from it")
        assert not found.entries
    else:
        assert not found.notes
        for _, value in found.entries:
            assert all(text.isprintable() for text in (value if isinstance(value, list) else [str(value)]))


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    for make, said in (
        (lambda: card.mkdir(), "is not a regular file"),
        (lambda: os.mkfifo(card), "is not a regular file"),
        (lambda: card.write_bytes(b"---\nlicense: \xff\n---\n"), "byte 13 is not UTF-8"),
        (lambda: card.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (lambda: card.write_bytes(bytes((1 << 22) + 1)), "edge reads at most"),
        (lambda: card.symlink_to(card), "leads back to itself"),
    ):
        make()
        (note,) = read_card(tmp_path).notes
        assert said in note
        card.rmdir() if card.is_dir() else card.unlink()


def test_norwegian_is_a_language(tmp_path: Path) -> None:
    """YAML reads `no` as false; llama.cpp's converter knows that in one form of a list only."""
    for language in ("no", "[no]", "[en, no]", "\n- no"):
        (tmp_path / "README.md").write_text(f"---\nlanguage: {language}\n---\n", encoding="utf-8")
        assert "no" in dict(read_card(tmp_path).entries)["general.languages"]


def test_a_folder_of_the_author_is_not_named(tmp_path: Path) -> None:
    """peft writes the base's path into the card of an adapter: a published file must not name it as an address."""
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_link: ./LICENSE\nbase_model: /home/me/models/base-8b\n"
        "datasets: [~/rows, owner/rows]\n"
        "tags:\n- base_model:adapter:/home/me/models/base-8b\n- lora\n---\n",
        encoding="utf-8",
    )
    found = dict(read_card(tmp_path).entries)
    assert not any("/me/" in str(value) or value == "rows" for value in found.values())
    assert found["general.tags"] == ["lora"] and found["general.license.link"] == "./LICENSE"
    assert found["general.dataset.0.repo_url"] == "https://huggingface.co/owner/rows"
    assert not any(key.startswith("general.base_model") for key in found)
