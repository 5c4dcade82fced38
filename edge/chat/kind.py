"""Whether a model answers with actions or with text, if nobody says which."""

import re
from pathlib import Path
from typing import Any

from edge.answer.answering import AnswerKind
from edge.formats.gguf import read_metadata
from edge.replay.known import known_models

# The metadata that names the model, or the model that it was made from. llama.cpp's converter writes some of them too.
_NAMES = ("general.name", "general.source.repo_url", "general.repo_url", "general.base_model.0.repo_url")
_QUANT = re.compile(r"[-._](?:UD-)?(?:I?Q[1-8]\w*|TQ[12]\w*|B?F16|F32|MXFP4\w*)$", re.IGNORECASE)


def default_answers(path: Path) -> AnswerKind:
    """`action` for a model that a known-model file marks with `answers = "action"`, and `text` for all others.

    The GGUF at `path` is a known model if its metadata (general.name, its repository or that of its first base model)
    or its file name without the quantization type is the name, the hub id or the TOML file's name of that model. Case
    and marks between letters do not count. Raises ModelFileError if the file is damaged.
    """
    metadata: dict[str, Any] = read_metadata(path)
    named = {_plain(str(metadata[key]).rpartition("/")[2]) for key in _NAMES if metadata.get(key)}
    named.add(_plain(_QUANT.sub("", path.stem)))
    for known in known_models():
        names = {_plain(name) for name in (known.name, known.hub_id.rpartition("/")[2], known.path.stem)}
        if known.answers == "action" and named & (names - {""}):
            return "action"
    return "text"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()
