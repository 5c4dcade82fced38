"""Which steps of two results belong together, and whether they may be compared: the same rows and the same prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import ResultError
from edge.replay.result import mapping, step_key
from edge.replay.rows import Key, by_step, describe, without_sample

_SHOWN = 3  # steps that a refusal names

# What can differ in a step, most telling first, and what to do about it.
_ADVICE = {
    "other rows": "answer the same rows on both sides",
    "other reference answers": "answer the same rows on both sides",
    "other prompts": "use the same chat template on both sides",
    "prompts of another length": "use the same chat template and tokenizer on both sides",
}

# Limits and settings of a run, as `sampling` names them, that a reader should know to differ.
_SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "max_tokens",
    "max_model_len",
    "constrained",
    "structured",
    "text_share",
    "style",
)


@dataclass(frozen=True)
class Pairing:
    """The steps that both sides hold, in our order, and how many only one side holds."""

    ours: list[dict[str, Any]]
    reference: list[dict[str, Any]]
    keys: list[Key]
    only_ours: int
    only_reference: int
    notes: tuple[str, ...]
    """What could not be checked."""


def pair_steps(
    ours: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], our_name: str, reference_name: str
) -> Pairing:
    """Pair the steps (`per_step`, checked by `read_result`) of two results by their keys.

    Raises ResultError where no step is on both sides, and where the rows or prompts of any such step differ: by
    `row_sha256` and `prompt_sha256` where both sides have them, else by the reference answers and `prompt_tokens`.
    """
    our_steps = keyed(ours, map(step_key, reference))
    base_steps = keyed(reference, our_steps)
    keys = [key for key in our_steps if key in base_steps]
    if not keys:
        raise ResultError(
            f"{our_name}: no step can be joined with {reference_name}: they hold different steps"
        )
    pairs = [(our_steps[key], base_steps[key]) for key in keys]
    different: dict[str, list[Key]] = {what: [] for what in _ADVICE}
    for key, (a, b) in zip(keys, pairs, strict=True):
        if what := _difference(a, b):
            different[what].append(key)
    if any(different.values()):
        raise ResultError(f"{our_name} and {reference_name}: {_refusal(different)}")
    return Pairing(
        [a for a, _ in pairs],
        [b for _, b in pairs],
        keys,
        len(our_steps) - len(keys),
        len(base_steps) - len(keys),
        tuple(_unchecked(pairs, our_name, reference_name)),
    )


def keyed(steps: Iterable[dict[str, Any]], others: Iterable[Key]) -> dict[Key, dict[str, Any]]:
    """Steps by their key; one without a sample_idx is the other side's only sample of it, else sample 0."""
    known = by_step(others)
    found = {}
    for step in steps:
        key = step_key(step)
        found[without_sample(key, known) if step.get("sample_idx") is None else key] = step
    return found


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    if _both(a, b, "row_sha256", str) and a["row_sha256"] != b["row_sha256"]:
        return "other rows"
    for name in ("ref_command_units", "ref_task_complete"):
        if a[name] != b[name]:
            return "other reference answers"
    if _both(a, b, "prompt_sha256", str):
        return None if a["prompt_sha256"] == b["prompt_sha256"] else "other prompts"
    if _both(a, b, "prompt_tokens", int) and a["prompt_tokens"] != b["prompt_tokens"]:
        return "prompts of another length"
    return None


def _both(a: Mapping[str, Any], b: Mapping[str, Any], name: str, kind: type) -> bool:
    return isinstance(a.get(name), kind) and isinstance(b.get(name), kind)


def _refusal(different: Mapping[str, Sequence[Key]]) -> str:
    """What differs, in how many steps and which, and what to do, in one line."""
    found = [(what, keys) for what, keys in different.items() if keys]
    parts = []
    for what, keys in found:
        names = [describe(key) for key in keys[:_SHOWN]] + ["…"] * (len(keys) > _SHOWN)
        verb = "has" if len(keys) == 1 else "have"
        parts.append(f"{_steps(len(keys))} {verb} {what} ({', '.join(names)})")
    return f"{', '.join(parts)}: the results cannot be paired; {_ADVICE[found[0][0]]}"


def _unchecked(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], our_name: str, reference_name: str
) -> list[str]:
    notes = []
    rows = [pair for pair in pairs if not _both(*pair, "row_sha256", str)]
    prompts = [pair for pair in pairs if not _both(*pair, "prompt_sha256", str)]
    if rows:
        who = _lacking(rows, "row_sha256", our_name, reference_name)
        notes.append(
            f"Whether the rows are the same was checked by their reference answers alone: {who} hashes of them."
        )
    if prompts:
        who = _lacking(prompts, "prompt_sha256", our_name, reference_name)
        by_length = all(_both(*pair, "prompt_tokens", int) for pair in prompts)
        how = "was checked by their lengths alone" if by_length else "could not be checked"
        of = "" if len(prompts) == len(pairs) else f" of {_steps(len(prompts))}"
        why = "" if rows else " (a server that renders the chat itself gives none)"
        notes.append(f"Whether the prompts{of} are the same {how}: {who} hashes of them{why}.")
    other = sum(
        a["prompt_tokens"] != b["prompt_tokens"]
        for a, b in pairs
        if _both(a, b, "prompt_sha256", str) and _both(a, b, "prompt_tokens", int)
    )
    if other:
        notes.append(
            f"{_steps(other)} of the same prompt text came to another number of tokens: the tokenizers differ, or "
            "one side added a token of its own."
        )
    return notes


def _lacking(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    name: str,
    our_name: str,
    reference_name: str,
) -> str:
    ours = any(not isinstance(a.get(name), str) for a, _ in pairs)
    theirs = any(not isinstance(b.get(name), str) for _, b in pairs)
    if ours and theirs:
        return "neither side holds"
    return f"{our_name if ours else reference_name} holds no"


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def thought_budget(sampling: Mapping[str, Any]) -> int | None:
    """The most tokens of a thought by a result's `sampling`, 0 for none; None where no grammar holds it to any.

    By default it is a quarter of `max_tokens`; below 3, both tags and one token, there is none
    (`edge/answer/writer.py`).
    """
    if sampling.get("constrained") is not True or "think" not in sampling:
        return None
    think, whole = sampling["think"], sampling.get("max_tokens")
    budget = (whole // 4 if isinstance(whole, int) else None) if think is None else think
    return None if not isinstance(budget, int) else budget if budget >= 3 else 0


def run_notes(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """How two runs differ otherwise: limits and settings, the model they are of, rows that were left out.

    Both are results; of published figures, at least `sampling`.
    """
    notes = []
    a, b = mapping(reference.get("sampling")), mapping(ours.get("sampling"))
    for name in _SETTINGS:
        if name not in a or name not in b or a[name] == b[name]:
            continue
        # Where a setting does not apply it is null, and what makes it so has a line of its own.
        if a[name] is not None and b[name] is not None:
            notes.append(
                f"The runs differ: {name} is {_told(a[name])} in the reference, {_told(b[name])} in ours."
            )
    budgets = thought_budget(a), thought_budget(b)
    if None not in budgets and budgets[0] != budgets[1]:
        told = [f"up to {budget} tokens" if budget else "off" for budget in budgets]
        notes.append(f"The runs differ: think is {told[0]} in the reference, {told[1]} in ours.")
    theirs, mine = mapping(reference.get("provenance")), mapping(ours.get("provenance"))
    for name, what in (("source", "models"), ("source_revision", "revisions of the model")):
        if theirs.get(name) and mine.get(name) and theirs[name] != mine[name]:
            notes.append(
                f"The runs are of different {what}: {name} is {theirs[name]} in the reference, {mine[name]} in ours."
            )
            break
    for sampling, whose in ((a, "The reference"), (b, "Ours")):
        skipped = sampling.get("skipped_too_long")
        if isinstance(skipped, int) and skipped > 0:
            notes.append(
                f"{whose} left out {skipped} row{'s' * (skipped > 1)} that did not fit into its context."
            )
    for result, whose in ((reference, "The reference"), (ours, "Ours")):
        status = mapping(result.get("prompt_template"))
        if status.get("rank_eligible") is False and status.get("template_status") != "unknown":
            notes.append(f"{whose} is not rank-eligible: its prompts are by {status.get('template_status')}.")
    return notes


def _told(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
