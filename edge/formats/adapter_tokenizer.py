"""The tokenizer beside a LoRA adapter: a fine-tune can add special tokens, and can have another EOS and template.

transformers' `save_pretrained` writes these files beside the adapter. The model was trained with them, so they count,
and not those of the base. Whether the tokenizer only extends that of the base, edge/conversion/tokenizer.py checks.
"""

import json
import os
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
        config |= _added(checkpoint, folder, config)
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


def _added(checkpoint: Checkpoint, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json's list of added tokens, with those of both folders. {} if there are none.

    For an adapter without tokenizer.json; older ones keep these tokens in added_tokens.json.
    """
    special = json.dumps([value for key, value in config.items() if key.endswith(("_token", "_tokens"))])
    added: dict[str, Any] = {}
    for text, i in read_json(folder / "added_tokens.json", missing_ok=True).items():
        added[str(i)] = {"content": text, "special": json.dumps(text) in special}
    for source in (checkpoint.tokenizer_config, config):
        part = source.get("added_tokens_decoder")
        added |= part if isinstance(part, dict) else {}
    return {"added_tokens_decoder": added} if added else {}
