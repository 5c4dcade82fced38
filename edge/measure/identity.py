"""What a file of base distributions must share with a measurement that uses it."""

import hashlib
from importlib.metadata import version
from pathlib import Path

from edge.errors import ModelFileError, ResultError
from edge.formats.gguf import ModelFile, model_sha256, read_array
from edge.measure.base_file import BaseFile, Identity
from edge.measure.positions import Plan
from edge.system.changes import differences
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
    held = scores.head["identity"]
    if held.get("vocabulary") != wanted["vocabulary"]:
        raise other_vocabulary(model, scores.path)
    if changes := differences(held, wanted):
        raise ResultError(
            f"{scores.path}: was made for another measurement ({changes}): "
            "measure with the same rows and options, or read the base again"
        )


def is_of(path: Path, base: ModelFile, plan: Plan, vocabulary: str) -> bool:
    """Whether the file exists and fits. Raises ResultError if it is another file."""
    if not path.exists():
        return False
    scores = BaseFile.read(path)
    check_identity(scores, base.path, identity(plan, vocabulary))
    if scores.head["base"]["sha256"] != model_sha256(base.path):
        raise ResultError(f"{path}: is of another base model: move the file away, or choose another --out")
    return True


def other_vocabulary(model: Path, base: Path) -> ModelFileError:
    return ModelFileError(f"{model}: its vocabulary differs from that of {base}: give two files of one model")
