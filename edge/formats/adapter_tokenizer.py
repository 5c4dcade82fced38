"""The tokenizer beside a LoRA adapter: a fine-tune can add special tokens, and can have another EOS and template.

transformers' `save_pretrained` writes these files beside the adapter. The model was trained with them, so they count,
and not those of the base. Whether the tokenizer only extends that of the base, edge/conversion/tokenizer.py checks.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.formats.checkpoint import (
    Checkpoint,
    read_chat_template,
    read_json,
    read_tokenizer_config,
)

_UNUSED = ("version", "truncation", "padding")  # keys of tokenizer.json that change no tokens of a prompt


def with_tokenizer(checkpoint: Checkpoint, folder: Path) -> tuple[Checkpoint, list[str]]:
    """The checkpoint with the tokenizer, generation settings and chat template of the adapter in `folder`, and notes.

    What the adapter has no file for stays the base's. Raises CheckpointError if a file is damaged.
    """
    own = read_tokenizer_config(folder)
    template = read_chat_template(folder, own)
    notes = []
    if template is None:
        template = checkpoint.chat_template
    elif template != checkpoint.chat_template:
        notes.append(f"the chat template is the adapter's ({folder}), not the base's")
    config = {**checkpoint.tokenizer_config, **own}
    tokenizer, file = checkpoint.tokenizer, None
    if os.path.lexists(folder / "tokenizer.json"):
        tokenizer, file = read_json(folder / "tokenizer.json"), folder / "tokenizer.json"
        config = own or config
    else:
        config |= _added(checkpoint.tokenizer_config, own)
        if os.path.lexists(folder / "tokenizer.model"):
            notes.append(
                f"{folder}: has tokenizer.model but no tokenizer.json; edge uses the base's tokenizer.json"
            )
    generation = checkpoint.generation_config | read_json(folder / "generation_config.json", missing_ok=True)
    if (_counting(tokenizer), config, generation) == (
        _counting(checkpoint.tokenizer),
        checkpoint.tokenizer_config,
        checkpoint.generation_config,
    ):
        return replace(checkpoint, chat_template=template), notes
    return replace(
        checkpoint,
        tokenizer=tokenizer,
        tokenizer_config=config,
        generation_config=generation,
        chat_template=template,
        adapter_tokenizer=file or checkpoint.adapter_tokenizer,
        extends=checkpoint,
    ), notes


def _counting(tokenizer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tokenizer.items() if key not in _UNUSED}


def _added(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The added tokens of both configurations, for an adapter without tokenizer.json."""
    decoders, encoders = (
        [part for config in (base, own) if isinstance(part := config.get(key), dict)]
        for key in ("added_tokens_decoder", "added_tokens_encoder")
    )
    if not decoders:
        return {"added_tokens_encoder": {**encoders[0], **encoders[-1]}} if encoders else {}
    special = [value for key, value in own.items() if key.endswith("_token")]
    further = own.get("extra_special_tokens", own.get("additional_special_tokens"))
    special += further if isinstance(further, list) else []
    older = own.get("added_tokens_encoder") or {}
    folded = {str(i): {"content": text, "special": text in special} for text, i in older.items()}
    return {"added_tokens_decoder": {**folded, **decoders[0], **decoders[-1]}}
