"""The structure of tokenizer.json, and reading it with the tokenizers package.

The types below hold only for a file that the tokenizers package accepts: call `read_tokenizer` first.
"""

from pathlib import Path
from typing import Literal, TypedDict, cast

from tokenizers import Tokenizer

from edge.errors import ConversionError
from edge.formats.checkpoint import Checkpoint


class Pattern(TypedDict, total=False):
    """The pattern of a Replace or Split step: one of the two keys."""

    String: str
    Regex: str


class SpecialToken(TypedDict, total=False):
    """A special token in a post-processor. `id`: its text."""

    id: str


class TemplatePart(TypedDict, total=False):
    """A part of a TemplateProcessing post-processor."""

    SpecialToken: SpecialToken


class Step(TypedDict, total=False):
    """A normalizer, pre-tokenizer or post-processor. A Sequence has further steps under one of the last three keys."""

    type: str
    pattern: Pattern
    content: str
    behavior: str
    invert: bool
    individual_digits: bool
    add_prefix_space: bool
    use_regex: bool
    prepend_scheme: str
    single: list[TemplatePart]
    normalizers: list["Step"]
    pretokenizers: list["Step"]
    processors: list["Step"]


class Bpe(TypedDict, total=False):
    """The model of a BPE tokenizer. `vocab`: token ids by text. `ignore_merges`: a whole word can be a token."""

    vocab: dict[str, int]
    ignore_merges: bool


class TokenizerJson(TypedDict, total=False):
    """The parts of tokenizer.json that a conversion reads."""

    model: Bpe
    normalizer: Step | None
    pre_tokenizer: Step | None
    post_processor: Step | None


def read_tokenizer(file: Path) -> Tokenizer:
    """Read tokenizer.json with the tokenizers package, without padding and truncation.

    Raises ConversionError if the package cannot read it.
    """
    try:
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()  # padding and truncation are not part of the model, and can have any size
        tokenizer.no_truncation()
        return tokenizer
    except BaseException as error:  # the tokenizers package raises bare Exception, and Rust's panics are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise ConversionError(f"{file}: the tokenizers package cannot read it: {reason}") from None


def templates(checkpoint: Checkpoint) -> list[Step]:
    """The post-processors that add special tokens to a text. The tokenizers package must have read tokenizer.json."""
    processor = cast(TokenizerJson, checkpoint.tokenizer).get("post_processor") or Step()
    return [step for step in parts(processor, "processors") if step.get("type") == "TemplateProcessing"]


def put_around(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """The special tokens that the post-processors put before and after a text."""
    first: list[str] = []
    last: list[str] = []
    for template in templates(checkpoint):
        found = first
        for part in template.get("single") or []:
            special = part.get("SpecialToken")
            if special is None:
                found = last
            else:
                found.append(special.get("id", ""))
    return first, last


def parts(step: Step, key: Literal["normalizers", "pretokenizers", "processors"]) -> list[Step]:
    """The steps of a Sequence, otherwise the step itself.

    The tokenizers package checks such a list only in a Sequence, so a list in another step is ignored.
    """
    found = step.get(key)
    if step.get("type", "Sequence") != "Sequence" or not isinstance(found, list):
        return [step]
    return found if all(isinstance(part, dict) for part in found) else [step]
