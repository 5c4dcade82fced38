"""Where transformers builds a tokenizer from its class: edge knows when, and what it then gives.

pytest tests/conversion/test_class_tokenizer.py
"""

import json
import shutil
from pathlib import Path
from typing import Any

import make_tokenizers
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from make_tokenizers import N_VOCAB
from transformers import AutoTokenizer

from edge.conversion.added_tokens import assemble
from edge.conversion.class_tokenizer import build
from edge.conversion.tokenizer import make_vocabulary
from edge.conversion.tokenizer_check import PROBE_LINES
from edge.conversion.tokenizer_class import class_name
from edge.convert import convert
from edge.formats.checkpoint import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
KINDS = ("lfm2", "qwen2", "qwen35", "tekken", "gemma3", "mistral")
CLASSES = [
    *(None, "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    *("Qwen2Tokenizer", "Qwen2TokenizerFast", "Qwen3_5Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast"),
    *("GPT2Tokenizer", "GPTNeoXTokenizerFast", "CodeLlamaTokenizer", "NoSuchTokenizer"),
]
TYPES = [
    *("llama", "mistral", "ministral3", "qwen2", "qwen3", "qwen3_moe", "qwen3_5_text", "gemma3_text"),
    *("lfm2", "lfm2_moe", "gemma4_text"),
]
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
# Lists of added tokens that are not those of tokenizer.json, and no names of special tokens.
DECODERS: list[dict[str, Any]] = [
    {},
    {"997": {"content": "<|tool|>", **FLAGS, "special": True}},
    {
        "990": {"content": "<|im_end|>", **FLAGS, "special": False},
        "5": {"content": "ls", **FLAGS, "special": False},
    },
]
LEFT_OUT = "left out"
UNNAMED = dict.fromkeys((f"{kind}_token" for kind in ("bos", "eos", "unk", "pad", "mask")), LEFT_OUT)
TEXTS = [
    *PROBE_LINES,
    "<s>[INST] ls",
    " ls",
    "<|im_start|>user\nls<|im_end|>",
    "<bos>ls",
    "a<s> b",
    "<start_of_turn>ls",
]
TEXTS += ["<|endoftext|>ls<|tool|><unk>", "<|padding|><mask><pad></s><eos>"]


@pytest.fixture(scope="module")
def folders(random_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint with each kind of tokenizer.json."""
    found = {}
    for kind in KINDS:
        found[kind] = Path(shutil.copytree(random_llama_folder, tmp_path_factory.mktemp(kind) / "model"))
        getattr(make_tokenizers, kind)(found[kind])
        shutil.copy(found[kind] / "tokenizer_config.json", found[kind] / "written.json")
    return found


def name(folder: Path, model_type: str, tokenizer_class: str | None, **further: Any) -> None:
    """Write the type of the model and the class of the tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    settings = json.loads((folder / "written.json").read_text())
    settings |= {"tokenizer_class": tokenizer_class, "add_prefix_space": None, **further}
    given = {key: value for key, value in settings.items() if key == "bos_token" or value is not None}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in given.items() if value != LEFT_OUT})
    )


def agrees(folder: Path) -> bool:
    """Compare with transformers. Returns whether tokenizer.json as it is gives the same."""
    checkpoint = open_checkpoint(folder)
    plain = assemble(checkpoint, N_VOCAB + 100).tokenizer
    found = class_name(checkpoint)
    built = (None if found is None else build(checkpoint, plain, found)) or plain
    judge = AutoTokenizer.from_pretrained(folder)
    wanted = [judge(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert [built.encode(text, add_special_tokens=False).ids for text in TEXTS] == wanted
    return [plain.encode(text, add_special_tokens=False).ids for text in TEXTS] == wanted


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    model_type=st.sampled_from(TYPES),
    tokenizer_class=st.sampled_from(CLASSES),
    further=st.fixed_dictionaries(
        {},
        optional={
            "legacy": st.booleans(),
            "add_prefix_space": st.booleans(),
            "added_tokens_decoder": st.sampled_from(DECODERS),
        },
    ),
    unnamed=st.booleans(),
)
def test_every_class_as_transformers_builds_it(
    kind: str,
    model_type: str,
    tokenizer_class: str | None,
    further: dict[str, Any],
    unnamed: bool,
    folders: dict[str, Path],
) -> None:
    name(folders[kind], model_type, tokenizer_class, **further, **(UNNAMED if unnamed else {}))
    found = class_name(open_checkpoint(folders[kind])) or ""
    # A byte-level vocabulary lacks the tokens of these classes, which transformers then adds.
    assume(kind in ("gemma3", "mistral") or found not in ("GemmaTokenizer", "CodeLlamaTokenizer"))
    agrees(folders[kind])


@pytest.mark.parametrize(
    ("kind", "model_type", "tokenizer_class", "note"),
    [
        ("mistral", "llama", "LlamaTokenizer", True),  # Llama 2's older form: Prepend
        ("mistral", "llama", "LlamaTokenizerFast", True),
        ("mistral", "llama", "PreTrainedTokenizerFast", False),
        ("mistral", "mistral", "LlamaTokenizer", False),
        ("lfm2", "llama", "LlamaTokenizer", False),  # byte-level: transformers reads the file
        ("lfm2", "llama", "Qwen2Tokenizer", True),
        ("lfm2", "llama", "GPT2Tokenizer", True),  # phi-4 as a Llama
        ("lfm2", "lfm2", None, False),
        ("qwen2", "qwen3", "Qwen2Tokenizer", False),
        ("gemma3", "gemma3_text", "GemmaTokenizer", False),
    ],
)
def test_a_note_where_the_class_gives_other_tokens(
    kind: str,
    model_type: str,
    tokenizer_class: str | None,
    note: bool,
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    """edge follows tokenizer.json, and says so exactly where transformers gives other tokens."""
    folder = folders[kind]
    name(folder, model_type, tokenizer_class)
    assert agrees(folder) is not note
    done = convert(folder, quant="BF16", out=tmp_path / "x.gguf", threads=1)
    found = [line for line in done.warnings if line.startswith("transformers 5 builds")]
    assert bool(found) is note
    if note:
        assert "edge follows tokenizer.json" in found[0] and "\n" not in found[0]


@pytest.mark.parametrize(
    ("kind", "model_type", "tokenizer_class"),
    [
        ("qwen2", "qwen2", "Qwen2Tokenizer"),
        ("qwen2", "qwen3", "Qwen2TokenizerFast"),
        ("gemma3", "gemma3_text", "GemmaTokenizer"),
        ("mistral", "llama", "LlamaTokenizer"),
    ],
)
def test_a_note_where_only_some_added_tokens_are_listed(
    kind: str, model_type: str, tokenizer_class: str, folders: dict[str, Path]
) -> None:
    """transformers then forgets those of tokenizer.json, and gives their ids to others."""
    name(folders[kind], model_type, tokenizer_class, added_tokens_decoder=DECODERS[1])
    assert not agrees(folders[kind])
    notes = make_vocabulary(open_checkpoint(folders[kind]), N_VOCAB + 100).warnings
    assert any("edge follows tokenizer.json" in line for line in notes)


@pytest.mark.parametrize(
    ("kind", "model_type", "tokenizer_class"),
    [
        ("gemma3", "gemma3_text", None),
        ("gemma3", "gemma3_text", "GemmaTokenizer"),
        ("mistral", "llama", "LlamaTokenizer"),
        ("qwen2", "qwen2", None),
        ("qwen35", "qwen3_5_text", None),
        ("qwen2", "lfm2", "GPT2Tokenizer"),
        ("mistral", "mistral", "LlamaTokenizer"),
    ],
)
def test_the_special_tokens_of_a_class(
    kind: str, model_type: str, tokenizer_class: str | None, folders: dict[str, Path]
) -> None:
    """A configuration that names none: a chat template gets the BOS and the EOS of the class."""
    name(folders[kind], model_type, tokenizer_class, **UNNAMED)
    judge = AutoTokenizer.from_pretrained(folders[kind])
    vocabulary = make_vocabulary(open_checkpoint(folders[kind]), N_VOCAB + 100)
    for token in ("bos", "eos", "pad"):
        wanted = getattr(judge, f"{token}_token")
        found = vocabulary.special_ids.get(token)
        if wanted is not None:
            assert found is not None and vocabulary.tokens[found] == wanted


def test_a_class_whose_unknown_token_is_missing(folders: dict[str, Path]) -> None:
    """GemmaTokenizer on a byte-level vocabulary: transformers cannot write a text with it."""
    name(folders["qwen2"], "qwen3", "GemmaTokenizer", unk_token=LEFT_OUT)
    notes = make_vocabulary(open_checkpoint(folders["qwen2"]), N_VOCAB).warnings
    assert any("(GemmaTokenizer)" in line for line in notes)
    name(folders["qwen2"], "qwen3", "GemmaTokenizer", **UNNAMED)
    notes = make_vocabulary(open_checkpoint(folders["qwen2"]), N_VOCAB - 24).warnings
    assert not any("names the token" in line for line in notes)  # no file names <bos>, only the class
