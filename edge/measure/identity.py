"""What a file of base distributions must share with a measurement that uses it."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from edge.errors import ModelFileError, ResultError
from edge.formats.gguf import ModelFile, model_sha256, read_array
from edge.measure.base_file import BaseFile, Identity
from edge.measure.positions import Plan
from edge.system.outputs import Run, check_replaced, differences
from edge.version import __version__


def vocabulary_sha256(file: ModelFile) -> str:
    """The SHA-256 of the tokens of a GGUF in order, their types, the merges, and the ids that end an answer."""
    digest = hashlib.sha256()
    for key in ("tokens", "token_type", "merges"):
        for item in read_array(file.path, f"tokenizer.ggml.{key}"):
            digest.update(item if isinstance(item, bytes) else str(item).encode())
            digest.update(b"\0")
        digest.update(b"\0\0")
    digest.update(repr(sorted(file.end_ids)).encode())
    return digest.hexdigest()


def identity(plan: Plan, vocabulary: str) -> Identity:
    """Everything that the base file must share with a measurement; errors use these names."""
    return {
        "edge": __version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "vocabulary": vocabulary,
        plan.corpus.kind: plan.corpus.sha256,
        "chunk": plan.chunk,
        "batch": plan.corpus.batch,
        "tokens": plan.sha256,
    }


def check_identity(scores: BaseFile, model: Path, wanted: Identity) -> None:
    """Check that base distributions fit a measurement. Raises ModelFileError for another vocabulary, or ResultError."""
    held = scores.head["identity"]
    if held.get("vocabulary") != wanted["vocabulary"]:
        raise other_vocabulary(model, scores.path)
    if changes := differences(held, wanted):
        raise ResultError(
            f"{scores.path}: was made for another measurement ({changes}): "
            "measure with the same rows and options, or read the base again"
        )


def is_of(path: Path, base: ModelFile, plan: Plan, vocabulary: str, *, force: bool) -> bool:
    """Whether the file exists and fits. Raises ResultError if it is another file, unless `force` permits to replace it.

    A file of another version of edge or llama.cpp is replaced too.
    """
    run = {**identity(plan, vocabulary), "base_sha256": model_sha256(base.path)}

    def read(place: Path) -> Run:
        head = BaseFile.read(place).head
        return {**head["identity"], "base_sha256": head["base"]["sha256"]}

    check_replaced(path, run, read, kind="the distributions of a base", force=force)
    try:
        return not differences(read(path), run)
    except ResultError:  # there is none, or `force` permits to replace it
        return False


def other_vocabulary(model: Path, base: Path) -> ModelFileError:
    """The error for a model whose vocabulary is not that of the base, to raise."""
    return ModelFileError(f"{model}: its vocabulary differs from that of {base}: give two files of one model")
