"""Say what differs between two runs besides the thing compared, and what is missing in each."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from edge.compare import patterns
from edge.replay.result import adapter_key
from edge.replay.shards import shard_note
from edge.replay.stored_result import Head, PromptTemplate, Result, SamplingFields, whole_text
from edge.system.text import counted

_Setting = Literal[
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
]
# What a run does with a sampling setting that its result does not name, most often. temperature and max_tokens have no
# usual value.
DEFAULTS: Mapping[str, object] = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "seed": None,
}
_ALWAYS_SAID = ("temperature", "max_tokens")
_FALLBACKS = ("chatml_fallback", "gemma_fallback", "mixed")
# Fields of `sampling` that get a note if they differ.
_SETTINGS: tuple[_Setting, ...] = get_args(_Setting)
_SOURCES: tuple[tuple[Literal["source", "source_revision"], str], ...] = (
    ("source", "models"),
    ("source_revision", "revisions of the model"),
)


def thought_budget(sampling: SamplingFields) -> int | None:
    """Maximum number of tokens of a thought by a result's `sampling`, 0 for none; None if no grammar limits it.

    The default is a quarter of `max_tokens`. A budget below 3 (two tags and one token) allows no thought
    (`edge/answer/writer.py`).
    """
    if sampling.get("constrained") is not True or "think" not in sampling:
        return None
    think, whole = sampling["think"], sampling.get("max_tokens")
    budget = think if think is not None else None if whole is None else whole // 4
    return budget if budget is None or budget >= 3 else 0


def run_notes(ours: Result, reference: Result) -> list[str]:
    """Other differences of two runs: settings and limits, the model, rows that were left out.

    Both are results. For published figures, `sampling` alone is enough.
    """
    notes = [*_row_sets(ours, reference), *_grammar(ours, reference)]
    a, b = reference.get("sampling", {}), ours.get("sampling", {})
    for name in _SETTINGS:
        theirs, mine = a.get(name), b.get(name)
        # A setting that does not apply is null. The setting that makes it so has its own line.
        if theirs is not None and mine is not None and theirs != mine:
            notes.append(patterns.SETTING(name=name, theirs=_value(theirs), ours=_value(mine)))
        elif (theirs is None) != (mine is None) and is_unnamed(name, b if mine is None else a):
            sides = ("the reference", "our result")
            who, other = sides if mine is None else sides[::-1]
            value = theirs if mine is None else mine
            if may_differ(name, [value]):
                notes.append(patterns.SETTING_UNNAMED(name=name, value=_value(value), who=who, other=other))
    notes += switch_notes(ours, reference)
    made = [_made(result) for result in (reference, ours)]
    notes += [
        patterns.SETTING(name=name, theirs=theirs, ours=made[1][name])
        for name, theirs in made[0].items()
        if None not in (theirs, made[1][name]) and theirs != made[1][name]
    ]
    budgets = thought_budget(a), thought_budget(b)
    if None not in budgets and budgets[0] != budgets[1]:
        words = [f"up to {budget} tokens" if budget else "off" for budget in budgets]
        notes.append(patterns.SETTING(name="think", theirs=words[0], ours=words[1]))
    origin, our_origin = reference.get("provenance", {}), ours.get("provenance", {})
    for source, what in _SOURCES:
        theirs, mine = origin.get(source), our_origin.get(source)
        if theirs and mine and theirs != mine:
            notes.append(patterns.SOURCES(what=what, source=source, theirs=theirs, ours=mine))
            break
    if adapter_key(reference) != adapter_key(ours):
        notes.append(_adapter_note(ours, reference))
    return [*notes, *own_notes(reference, "The reference"), *own_notes(ours, "Our result")]


def is_unnamed(name: str, sampling: Mapping[str, object]) -> bool:
    """Whether a result does not name a setting. edge writes null for one that does not apply."""
    return sampling.get(name) is None if name in _ALWAYS_SAID else name not in sampling


def may_differ(name: str, named: Iterable[object]) -> bool:
    """Whether a result that does not name a sampling setting may have another value than those that are `named`."""
    if name in _ALWAYS_SAID:
        return True
    return name in DEFAULTS and any(value != DEFAULTS[name] for value in named)


def names_adapters(result: Head) -> bool:
    """Whether a result says which adapters it had, or that it had none."""
    return "adapters" in result.get("provenance", {}) or "lora_path" in result


def prompt_switches(result: Result) -> dict[str, str]:
    """How a run set the options of its prompts: `on`, `off` or `not set`, by name. One that is unknown is missing.

    A published run records what `auto` meant for its model in `prompt_template`.
    """
    sampling, template = result.get("sampling", {}), result.get("prompt_template", {})
    found: dict[str, str] = {}
    for name, kept, field in (
        ("thinking_mode", template.get("chat_template_kwargs"), "enable_thinking"),
        ("strip_thinking_history", template.get("prompt_options"), "strip_thinking_history"),
    ):
        given = _switch(sampling.get(name))
        if kept is not None and (name == "thinking_mode" or field in kept):
            found[name] = _switch(kept.get(field)) or "not set"
        elif given:
            found[name] = given
    return found


def _switch(value: object) -> str | None:
    """`on` or `off`, as the published scripts read such a value; None for another one."""
    text = str(value).lower()
    if text in ("on", "true", "1", "yes", "enabled"):
        return "on"
    return "off" if text in ("off", "false", "0", "no", "disabled") else None


def switch_notes(ours: Result, reference: Result) -> list[str]:
    """The options that change prompts and differ, as sentences."""
    theirs, mine = prompt_switches(reference), prompt_switches(ours)
    return [
        patterns.SETTING(name=name, theirs=theirs[name], ours=mine[name])
        for name in theirs
        if name in mine and theirs[name] != mine[name]
    ]


def own_notes(result: Result, whose: str) -> list[str]:
    """What is missing or unusual in one result. `whose` is the subject of the sentences."""
    notes = []
    engine, sampling = result.get("engine", {}), result.get("sampling", {})
    if shard := result.get("shard"):
        notes.append(shard_note(shard, len(result["per_step"]), whose))
    steps, total = len(result["per_step"]), result.get("total_input_steps")
    if is_unfinished(result):
        notes.append(patterns.UNFINISHED(whose=whose, steps=steps_of(steps, total)))
    elif steps and total is not None and total > steps:
        notes.append(patterns.PART_OF_ROWS(whose=whose, steps=steps, total=total))
    if (stated := result.get("stated_steps")) is not None:
        notes.append(
            patterns.OTHER_STEPS(whose=whose, stated=counted(stated, "step"), steps=counted(steps, "step"))
        )
    if (missing := engine.get("rows_missing") or 0) > 0:
        notes.append(patterns.ROWS_MISSING(whose=whose, rows=counted(missing, "row")))
    if (skipped := sampling.get("skipped_too_long") or 0) > 0:
        notes.append(patterns.LEFT_OUT(whose=whose, rows=counted(skipped, "row")))
    if (again := result.get("rescored", 0)) > 0:
        verb = "was" if again == 1 else "were"
        them, their = ("it", "its") if again == 1 else ("them", "their")
        notes.append(
            patterns.RESCORED(whose=whose, steps=counted(again, "step"), verb=verb, them=them, their=their)
        )
    if fields := result.get("reread"):
        notes.append(patterns.REREAD(whose=whose, fields=reread_fields(fields)))
    errors = [step for step in result["per_step"] if step.get("error")]
    texts = sum(bool(whole_text(step) or step["pred_command_units"]) for step in errors)
    if failed := len(errors) - texts:
        verb = "is an error message" if failed == 1 else "are error messages"
        they = "it counts" if failed == 1 else "they count"
        notes.append(
            patterns.SERVER_ERRORS(whose=whose, answers=counted(failed, "answer"), verb=verb, they=they)
        )
    if texts:
        answers, verb = counted(texts, "answer"), "has" if texts == 1 else "have"
        notes.append(patterns.ERRORS_WITH_TEXT(whose=whose, answers=answers, verb=verb))
    cut = [
        step
        for step in result["per_step"]
        if step.get("closed_at_budget") or step.get("finish_reason") == "length"
    ]
    if cut:
        verb = "was" if len(cut) == 1 else "were"
        closed = sum(bool(step.get("closed_at_budget")) for step in cut)
        rest = f" {patterns.CLOSED(them='it' if closed == 1 else 'them')}" if closed == len(cut) else ""
        answers = counted(len(result["per_step"]), "answer")
        notes.append(patterns.CUT(whose=whose, cut=len(cut), answers=answers, verb=verb) + rest)
    status = result.get("prompt_template", {})
    source = status.get("template_status")
    if source in _FALLBACKS:
        several = "several templates" if source == "mixed" else source
        notes.append(patterns.NOT_ELIGIBLE(whose=whose, status=several))
    elif not_from_template(status):
        notes.append(patterns.SAYS_NOT_ELIGIBLE(whose=whose, status=source or "not stated"))
    return notes


def is_unfinished(result: Result) -> bool:
    """Whether a run says that it did not come to its end: `complete`, or fewer steps than its rows have."""
    steps, total, complete = len(result["per_step"]), result.get("total_input_steps"), result.get("complete")
    return complete is False or (complete is None and bool(steps) and total is not None and total > steps)


def steps_of(steps: int, total: int | None) -> str:
    """`1 step`, `20 of 143 steps`: the steps that a run has, and of how many if it says so."""
    return f"{steps:,} of {counted(total, 'step')}" if total else counted(steps, "step")


def reread_fields(fields: Mapping[str, int]) -> str:
    """`bucket in 2 steps, valid_json in 1 step`."""
    return ", ".join(f"{name} in {counted(count, 'step')}" for name, count in fields.items())


def not_from_template(template: PromptTemplate) -> bool:
    """Whether prompts are not from the model's own chat template, by the flag or by what they are from."""
    status = template.get("template_status")
    if status in _FALLBACKS:
        return True
    return template.get("rank_eligible") is False and status != "unknown"


def _made(result: Result) -> dict[str, object]:
    """What wrote the answers, where a result records it: it can change them, whatever the settings."""
    engine = result.get("engine", {})
    return {
        "backend": result.get("provenance", {}).get("backend") or result.get("sampling", {}).get("backend"),
        "kv_type": engine.get("kv_type"),
        "parallel": engine.get("parallel"),
    }


def _row_sets(ours: Result, reference: Result) -> list[str]:
    """A note if the two sides have other numbers of steps: the names and sizes of their row sets."""
    sizes = len(reference["per_step"]), len(ours["per_step"])
    if not all(sizes) or sizes[0] == sizes[1]:
        return []
    names = [_set_name(result) for result in (reference, ours)]
    told = [f"{name} with {counted(size, 'step')}" for name, size in zip(names, sizes, strict=True)]
    return [patterns.ROW_SETS(theirs=told[0], ours=told[1])]


def _set_name(result: Result) -> str:
    path = result.get("eval_path")
    return path.replace("\\", "/").rpartition("/")[2] if path else "an unnamed set"


def _grammar(ours: Result, reference: Result) -> list[str]:
    """A note if only one side wrote with a grammar, and the other does not say so in the same field."""
    sampling = reference.get("sampling", {}), ours.get("sampling", {})
    if None not in [each.get("constrained") for each in sampling]:
        return []  # the settings have their own note
    used = [bool(each.get("constrained") or each.get("structured")) for each in sampling]
    if used[0] == used[1]:
        return []
    who, other = ("our result", "the reference") if used[1] else ("the reference", "our result")
    return [patterns.GRAMMAR(who=who, other=other)]


def _adapter_note(ours: Result, reference: Result) -> str:
    theirs, mine = _adapters(reference), _adapters(ours)
    if names_adapters(reference) and names_adapters(ours):
        return patterns.ADAPTERS(theirs=theirs, ours=mine)
    if names_adapters(ours):
        return patterns.ADAPTERS_UNNAMED(who="our result", adapters=mine, other="The reference")
    return patterns.ADAPTERS_UNNAMED(who="the reference", adapters=theirs, other="Our result")


def _adapters(result: Result) -> str:
    adapters = result.get("provenance", {}).get("adapters")
    if adapters:
        return " and ".join(f"{one['name']} (scale {one['scale']:g})" for one in adapters)
    return re.split(r"[/\\]", (result.get("lora_path") or "none").rstrip("/\\"))[-1]


def _value(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
