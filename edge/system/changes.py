"""How two runs differ, in words: which inputs and which options changed."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping

Run = Mapping[str, object]
"""Everything that an output depends on, as JSON values by name: inputs (by SHA-256 or path) and settings."""

_MOST = 4  # changes that a line names
_LONGEST = 240  # characters of a value that a line shows: a path is shorter

# The inputs that a run names by their SHA-256, without an article. An s at the end is a plural.
_INPUTS = {
    "model_sha256": "model file",
    "base_sha256": "base",
    "checkpoint_sha256": "checkpoint",
    "adapters": "LoRA adapters",
    "rows_sha256": "replay rows",
    "rows": "replay rows",
    "calibration_sha256": "rows to calibrate on",
    "predictions_sha256": "predictions",
    "text": "text",
    "text_sha256": "text",
    "vocabulary": "vocabulary",
    "tensors": "tensors",
    "grammar_sha256": "grammar",
    "prompts_sha256": "prompts",
    "tokens": "texts to read",
    "reference": "reference",
    "rows_of": "result of --rows-of",
    "root": "root file system",
}
_PLURALS = frozenset(("adapters", "rows", "calibration", "predictions", "tensors", "prompts", "tokens"))
# What only follows from other inputs and settings. It is named if nothing else has changed.
_FOLLOWS = frozenset(("grammar_sha256", "prompts_sha256", "tokens", "vocabulary", "tensors"))
# Several inputs by name. A number before the name is their order.
_GROUPS = frozenset(("results", "tasks", "refused"))
_WORDS = {
    "edge": "version of edge",
    "llama-cpp-python": "version of llama-cpp-python",
    "vllm": "version of vLLM",
    "constrained": "grammar",
    "type": "quantization type",
    "max_model_len": "context length",
}
# Settings that are options of the same name.
_OPTIONS = frozenset(
    (
        "attempts backend base_url batch causes chunk context disk dtype flash_attention gpu_layers kv_type limit "
        "max_steps max_tokens memory min_p parallel process_output repetition_penalty seed served_model shard "
        "skip_too_long strip_thinking_history structured style temperature text_share think thinking_mode title "
        "top_k top_p tp worse"
    ).split()
)


def differences(before: Run, now: Run) -> str:
    """How two runs differ, for people; an empty string if they are equal."""
    old, new = before, json.loads(json.dumps(now))
    changed = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    named = [name for name in changed if name not in _FOLLOWS] or changed
    found = [change for name in named for change in _changes(name, old.get(name), new.get(name))]
    more = len(found) - _MOST
    return "; ".join([*found[:_MOST], *([f"{more} more differ"] if more > 0 else [])])


def _changes(name: str, before: object, now: object) -> Iterable[str]:
    """The changes of one field."""
    if name in _GROUPS and isinstance(before, dict) and isinstance(now, dict):
        return _group(name, before, now)
    if name in _INPUTS and (name == "adapters" or _is_digest(before) or _is_digest(now)):
        return [_input(name, before, now)]
    if isinstance(before, dict) or isinstance(now, dict):
        return _nested(name, before, now)
    if _is_digest(before) or _is_digest(now):
        return [_file(name, before, now)]
    was, is_ = _value(before), _value(now)
    if max(len(was), len(is_)) > _LONGEST:  # a chat template, a recipe
        return [_file(_named(name), before, now)]
    return [f"{_named(name)} was {was}, is {is_}"]


def _input(name: str, before: object, now: object) -> str:
    what = _INPUTS[name]
    if before is None or now is None:
        return f"now {'with' if before is None else 'without'} {what}"
    return f"{'other' if name.partition('_')[0] in _PLURALS else 'another'} {what}"


def _file(name: str, before: object, now: object) -> str:
    return f"{name} {'is new' if before is None else 'is left out' if now is None else 'has changed'}"


def _group(name: str, before: Mapping[str, object], now: Mapping[str, object]) -> Iterable[str]:
    """The changes of several inputs."""
    old, new = (sorted((_bare(each), value) for each, value in group.items()) for group in (before, now))
    if old == new:
        return [f"the {name} are in another order"]
    was, is_ = dict(old), dict(new)
    return [
        _file(each, was.get(each), is_.get(each))
        for each in {**is_, **was}
        if was.get(each) != is_.get(each) or [*was].count(each) > 1
    ] or [f"other {name}"]


def _bare(name: str) -> str:
    return re.sub(r"^\d+ ", "", name)


def _nested(name: str, before: object, now: object) -> Iterator[str]:
    old, new = (value if isinstance(value, dict) else {} for value in (before, now))
    for key in {**new, **old}:
        if old.get(key) != new.get(key):
            yield from _changes(f"{name}.{key}", old.get(key), new.get(key))


def _named(name: str) -> str:
    if name in _OPTIONS:
        return "--" + name.replace("_", "-")
    return f"the {_WORDS[name]}" if name in _WORDS else name


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _value(value: object) -> str:
    """A value for people."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if re.fullmatch(r"[\w.,+-]+", text) else json.dumps(text)
