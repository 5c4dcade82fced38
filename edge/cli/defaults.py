"""The default model of commands: the newest GGUF in models/, else the embedded model."""

from collections.abc import Callable
from pathlib import Path

from edge.errors import ModelFileError
from edge.system.paths import EMBEDDED_NAME, converted_models, embedded_checkpoint, model_folder

_QUANT = "Q4_K_M"


def default_model(note: Callable[[str], None]) -> Path:
    """The newest GGUF in models/ or the cache folder; else the embedded checkpoint, which edge converts once.

    `note` receives a line about the choice. Raises ModelFileError if this installation has no embedded checkpoint.
    """
    found = converted_models()
    if found:
        note(f"model: {found[0]}")
        return found[0]
    checkpoint = embedded_checkpoint()
    if not checkpoint.is_dir():
        raise ModelFileError(f"{checkpoint}: the embedded model is missing; name a GGUF with --model FILE")
    out = model_folder() / f"{EMBEDDED_NAME}-{_QUANT}.gguf"
    note(f"no model in models/ yet; converting the embedded {EMBEDDED_NAME} to {out}")
    from edge.convert import convert  # a heavy import, which only this case needs

    return convert(checkpoint, quant=_QUANT, out=out).path
