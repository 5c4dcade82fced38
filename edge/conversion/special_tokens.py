"""The special tokens of a GGUF, and what llama.cpp puts around a text."""

from edge.conversion.plan import text_values
from edge.conversion.tokenizer_class import class_names
from edge.conversion.tokenizer_json import put_around, templates
from edge.formats.checkpoint import Checkpoint
from edge.system.text import quoted

_NAMED_BY_CLASS = (
    "bos_token",
    "eos_token",
    "pad_token",
)  # llama.cpp's converter does not write the others so


def special_ids(checkpoint: Checkpoint, ids: dict[str, int]) -> tuple[dict[str, int], list[int], list[str]]:
    """The ids of the special tokens, the EOS ids that a GGUF has no key for, and notes.

    tokenizer_config.json names special tokens by text; otherwise config.json names them by id. Further EOS ids of
    generation_config.json become eot and eom, so that llama.cpp stops at them too.
    """
    named = {key: text for key, text in class_names(checkpoint).items() if key in _NAMED_BY_CLASS}
    config = named | checkpoint.tokenizer_config
    numbers = text_values(checkpoint.config) | {
        key: value for key, value in checkpoint.config.items() if value is not None
    }
    found: dict[str, int] = {}
    notes: list[str] = []
    texts = list(ids)
    for kind in ("bos", "eos", "unk", "sep", "pad", "mask"):
        entry = config.get(f"{kind}_token")
        text = (entry.get("content") if isinstance(entry, dict) else entry) or None
        number = numbers.get(f"{kind}_token_id")
        if isinstance(text, str) and text in ids:
            found[kind] = ids[text]
        elif kind == "bos" and text is None and checkpoint.tokenizer_config:
            # As in transformers: it is then undefined in a chat template, even if config.json has its id. But
            # llama.cpp needs one that tokenizer.json puts before a text.
            first = put_around(checkpoint)[0][-1:]
            if first and first[0] in ids:
                found[kind] = ids[first[0]]
                if "bos_token" in (checkpoint.chat_template or ""):
                    notes.append(
                        f"{checkpoint.tokenizer_file.parent}: names no bos_token, so transformers leaves it out of the "
                        f"chat template's prompts; the GGUF has {first[0]!r}, which tokenizer.json puts before a text, "
                        "and writes it there too"
                    )
        elif type(number) is int and 0 <= number < len(ids):
            found[kind] = number
            if isinstance(text, str):
                notes.append(
                    f"{checkpoint.tokenizer_file.parent}: its {kind}_token {text!r} is not in the vocabulary; the GGUF "
                    f"uses {kind}_token_id {number} ({texts[number]!r}) of config.json"
                )
    stops: list[object] = []
    for source in (checkpoint.generation_config, numbers):
        value = source.get("eos_token_id")
        stops += value if isinstance(value, list) else [value]
    further = [
        i
        for i in dict.fromkeys(i for i in stops if type(i) is int and 0 <= i < len(ids))
        if i != found.get("eos")
    ]
    if "eos" not in found and further:
        found["eos"] = further.pop(0)
    return found | dict(zip(("eot", "eom"), further, strict=False)), further[2:], notes


def adds(checkpoint: Checkpoint, tokens: list[str], ids: dict[str, int]) -> tuple[bool, bool]:
    """Whether a tokenizer adds BOS before a text and EOS after it.

    The post-processor decides, otherwise tokenizer_config.json; the default is no. An undefined token is not added.
    """
    config = checkpoint.tokenizer_config
    found = [bool(config.get(f"add_{kind}_token")) and kind in ids for kind in ("bos", "eos")]
    if templates(checkpoint):
        first, last = put_around(checkpoint)
        for at, (kind, text) in enumerate((("bos", first[-1:]), ("eos", last[:1]))):
            found[at] = kind in ids and [tokens[ids[kind]]] == text
    return found[0], found[1]


def around_note(checkpoint: Checkpoint, tokens: list[str], ids: dict[str, int]) -> list[str]:
    """A note if tokenizer.json puts other tokens around a text than a GGUF can say: BOS before it and EOS after it."""
    bos, eos = ([tokens[ids[kind]]] if kind in ids else [] for kind in ("bos", "eos"))
    first, last = put_around(checkpoint)
    if first in ([], bos) and last in ([], eos):
        return []
    return [
        f"{checkpoint.tokenizer_file} puts {quoted(first) or 'nothing'} before a text and "
        f"{quoted(last) or 'nothing'} after it; a GGUF has only the BOS ({quoted(bos) or 'none'}) and the EOS "
        f"({quoted(eos) or 'none'}) for that, so a text without a chat template has other special tokens in llama.cpp"
    ]
