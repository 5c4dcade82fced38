"""Pair the steps of two results, and check that they may be compared: the same rows and the same prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edge.compare import patterns
from edge.errors import ResultError
from edge.replay.rows import Key, by_step, describe, step_key, without_sample
from edge.replay.stored_result import Step
from edge.system.text import counted

_SHOWN = 3  # steps that a refusal names

# What can differ in a step, the clearest reason first, and what to do about it.
_ADVICE = {
    "different rows": "answer the same rows on both sides",
    "different reference answers": "answer the same rows on both sides",
    "different prompts": "use the same chat template on both sides",
    "prompts of different lengths": "use the same chat template and tokenizer on both sides",
}

_PROMPTS = ("different prompts", "prompts of different lengths")

_Hash = Literal["row_sha256", "prompt_sha256"]
_Pair = tuple[Step, Step]


@dataclass(frozen=True)
class Pairing:
    """The steps that both sides have, in the order of ours, and how many only one side has."""

    ours: list[Step]
    reference: list[Step]
    keys: list[Key]
    only_ours: int
    only_reference: int
    notes: tuple[str, ...]
    """What edge could not check."""


def pair_steps(
    ours: Sequence[Step],
    reference: Sequence[Step],
    our_name: str,
    reference_name: str,
    *,
    other_prompts: bool = False,
) -> Pairing:
    """Pair the steps of two results, as `read_result` returns them, by their keys.

    Raises ResultError if the results share no step, or if the rows or prompts of a shared step differ. The check uses
    `row_sha256` and `prompt_sha256` if both sides have them, else the reference answers and `prompt_tokens`.
    `other_prompts`: the runs differ in an option that changes prompts; prompts may then differ, and a note says so.
    """
    our_steps = keyed(ours, map(step_key, reference))
    base_steps = keyed(reference, our_steps)
    keys = [key for key in our_steps if key in base_steps]
    if not keys:
        raise ResultError(
            f"{our_name}: has no step in common with {reference_name}; compare results of the same rows"
        )
    pairs = [(our_steps[key], base_steps[key]) for key in keys]
    different: dict[str, list[Key]] = {what: [] for what in _ADVICE}
    for key, (a, b) in zip(keys, pairs, strict=True):
        if what := row_difference(a, b) or _prompt_difference(a, b):
            different[what].append(key)
    others = sum(map(len, [different.pop(what) for what in _PROMPTS])) if other_prompts else 0
    if any(different.values()):
        raise ResultError(f"{our_name} and {reference_name}: {_refusal(different)}")
    return Pairing(
        [a for a, _ in pairs],
        [b for _, b in pairs],
        keys,
        len(our_steps) - len(keys),
        len(base_steps) - len(keys),
        (
            *(
                [
                    patterns.OTHER_PROMPTS(
                        steps=_steps(others), all=len(keys), verb="has" if others == 1 else "have"
                    )
                ]
                if others
                else []
            ),
            *_unchecked(pairs, our_name, reference_name),
        ),
    )


def keyed(steps: Iterable[Step], others: Iterable[Key]) -> dict[Key, Step]:
    """Steps by their key. A step without sample_idx is the only sample of the other side, else sample 0."""
    known = by_step(others)
    result = {}
    for step in steps:
        key = step_key(step)
        result[without_sample(key, known) if step.get("sample_idx") is None else key] = step
    return result


def row_difference(a: Step, b: Step) -> str | None:
    """Why two steps with the same key are not of the same row; None if they are."""
    if _both_have(a, b, "row_sha256") and a["row_sha256"] != b["row_sha256"]:
        return "different rows"
    # A reference answer without task_complete is false in published results, null here.
    completes = a["ref_task_complete"] is True, b["ref_task_complete"] is True
    if a["ref_command_units"] != b["ref_command_units"] or completes[0] != completes[1]:
        return "different reference answers"
    return None


def _prompt_difference(a: Step, b: Step) -> str | None:
    if _both_have(a, b, "prompt_sha256"):
        return None if a["prompt_sha256"] == b["prompt_sha256"] else "different prompts"
    return "prompts of different lengths" if _other_length(a, b) else None


def _both_have(a: Step, b: Step, name: _Hash) -> bool:
    return a.get(name) is not None and b.get(name) is not None


def _both_have_lengths(a: Step, b: Step) -> bool:
    return a.get("prompt_tokens") is not None and b.get("prompt_tokens") is not None


def _other_length(a: Step, b: Step) -> bool:
    return _both_have_lengths(a, b) and a["prompt_tokens"] != b["prompt_tokens"]


def _refusal(different: Mapping[str, Sequence[Key]]) -> str:
    """What differs, in how many steps and which, and what to do, in one line."""
    reasons = [(what, keys) for what, keys in different.items() if keys]
    parts = []
    for what, keys in reasons:
        names = [describe(key) for key in keys[:_SHOWN]] + ["…"] * (len(keys) > _SHOWN)
        verb = "has" if len(keys) == 1 else "have"
        parts.append(f"{_steps(len(keys))} {verb} {what} ({', '.join(names)})")
    return f"{', '.join(parts)}: the results cannot be paired; {_ADVICE[reasons[0][0]]}"


def _unchecked(pairs: Sequence[_Pair], our_name: str, reference_name: str) -> list[str]:
    notes = []
    rows = [pair for pair in pairs if not _both_have(*pair, "row_sha256")]
    prompts = [pair for pair in pairs if not _both_have(*pair, "prompt_sha256")]
    if rows:
        who = _lacking(rows, "row_sha256", our_name, reference_name)
        notes.append(patterns.CHECKED_BY_ANSWERS(who=who))
    if prompts:
        who = _lacking(prompts, "prompt_sha256", our_name, reference_name)
        of = "" if len(prompts) == len(pairs) else f" of {_steps(len(prompts))}"
        by_length = all(_both_have_lengths(*pair) for pair in prompts)
        checked = (
            f"checked the prompts{of} by their lengths only"
            if by_length
            else f"could not check the prompts{of}"
        )
        why = "" if rows else " (a server that renders the chat itself sends none)"
        notes.append(patterns.CHECKED_BY_LENGTH(checked=checked, who=who, why=why))
    other = sum(_both_have(a, b, "prompt_sha256") and _other_length(a, b) for a, b in pairs)
    if other:
        verb = "has" if other == 1 else "have"
        notes.append(patterns.OTHER_TOKENS(steps=_steps(other), verb=verb))
    return notes


def _lacking(pairs: Sequence[_Pair], name: _Hash, our_name: str, reference_name: str) -> str:
    ours = any(a.get(name) is None for a, _ in pairs)
    theirs = any(b.get(name) is None for _, b in pairs)
    if ours and theirs:
        return "neither side has"
    return f"{our_name if ours else reference_name} has no"


def _steps(count: int) -> str:
    return counted(count, "step")
