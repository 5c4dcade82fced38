"""Which of many results can be ranked together: one set of rows, whole runs, one result of each model and setting."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edge.compare.labels import model_hash
from edge.compare.notes import (
    DEFAULTS,
    is_unfinished,
    is_unnamed,
    not_from_template,
    prompt_switches,
    reread_fields,
    steps_of,
    thought_budget,
)
from edge.compare.pairing import keyed, row_difference
from edge.errors import ResultError
from edge.replay.result import adapter_key, read_result
from edge.replay.rows import Key
from edge.replay.stored_result import Result, Step
from edge.system.text import counted

# Fields of `sampling` that change answers. Two results of one model that agree in them are two of one thing.
_SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "max_tokens",
    "constrained",
    "structured",
    "think",
    "text_share",
    "style",
    "dtype",
    "backend",
)
NOT_SET = "not set"
"""A setting that does not apply to a run, in which edge writes null."""
# The ones whose difference a reader of a ranking must know. A grammar has a separate note.
COMPARED = (
    *_SETTINGS[:6],
    "think",
    "text_share",
    "style",
    "backend",
    "thinking_mode",
    "strip_thinking_history",
)


@dataclass(frozen=True)
class Candidate:
    """A result that is on the board's rows. `steps`: those of the board, in the board's order."""

    path: str
    result: Result
    steps: tuple[Step, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """A result that is not ranked, and why."""

    result: str
    """The file, as the command named it."""
    model: str
    """Name of its model for people; "" if the file could not be read."""
    score: float | None
    """Its own score, over its own steps; null if it has none. It does not compare with those of the ranking."""
    steps: int
    """Number of its steps."""
    why: str
    """Why it is not ranked."""


@dataclass(frozen=True)
class Board:
    """What is ranked: candidates on one set of rows. `name`: the file of the rows, as most results name it."""

    name: str
    keys: tuple[Key, ...]
    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]


def read_board(results: Sequence[Path | str], rows_of: Path | str | None = None) -> Board:
    """Read results and choose those that can be ranked together.

    The rows are those of `rows_of`, or those that most whole results have; of equals, the larger set. A file that is no
    result is left out with its reason. Raises ResultError for a file that cannot be read, a file that is given twice,
    and where no result has steps.
    """
    read: list[tuple[str, Result]] = []
    left_out: list[LeftOut] = []
    seen: set[Path] = set()
    for path in results:
        if not Path(path).exists():
            raise ResultError(f"{path}: no such file")
        if (place := Path(path).resolve()) in seen:
            raise ResultError(f"{path}: is given twice")
        seen.add(place)
        try:
            read.append((str(path), read_result(path)))
        except ResultError as error:
            left_out.append(LeftOut(str(path), "", None, 0, str(error).removeprefix(f"{path}: ")))
    if not any(result["per_step"] for _, result in read):
        raise ResultError(_nothing(read, left_out))
    rows = _rows(read, rows_of)
    found: list[Candidate] = []
    for path, result in read:
        why, candidate = _judged(path, result, rows)
        if candidate is None:
            left_out.append(_left_out(path, result, why))
        else:
            found.append(candidate)
    kept, older = _newest(found)
    names = Counter(name for one in kept if (name := one.result.get("eval_path")))
    name = names.most_common(1)[0][0].replace("\\", "/").rpartition("/")[2] if names else ""
    given = {str(path): place for place, path in enumerate(results)}
    ordered = sorted([*left_out, *older], key=lambda one: given[one.result])
    return Board(name, tuple(rows), tuple(kept), tuple(ordered))


def _nothing(read: Sequence[tuple[str, Result]], left_out: Sequence[LeftOut]) -> str:
    """Why there is nothing to rank: what is wrong with the first file, and how many more there are."""
    reasons = [f"{one.result}: {one.why}" for one in left_out]
    reasons += [f"{path}: has figures but no steps" for path, _ in read]
    more = f" (and {counted(len(reasons) - 1, 'more file')} without steps)" if len(reasons) > 1 else ""
    return f"{reasons[0]}{more}; nothing to rank"


def own_score(result: Result) -> float | None:
    """The score over all steps of a result; None if it has no figures."""
    f1 = result.get("aggregate", {}).get("avg_command_f1")
    return None if f1 is None else round(100 * f1, 2)


def named_settings(result: Result) -> dict[str, object]:
    """The settings of a run that change answers: None if the result does not name it, NOT_SET if it does not apply."""
    sampling: Mapping[str, object] = {**result.get("sampling", {})}
    found = {**sampling, "think": thought_budget(result.get("sampling", {}))}
    values = {
        name: None if is_unnamed(name, sampling) else NOT_SET if found.get(name) is None else found[name]
        for name in _SETTINGS
    }
    return {**values, **prompt_switches(result)}


def _identity_settings(result: Result) -> dict[str, object]:
    """The same, with the usual values of those that do not apply or that the result does not name."""
    usual = {"temperature": 0.0, **DEFAULTS}
    settings = named_settings(result)
    return {name: usual.get(name) if value in (None, NOT_SET) else value for name, value in settings.items()}


def written_with_grammar(result: Result) -> bool:
    """Whether a grammar or a JSON schema guided the answers, as far as the result says."""
    sampling = result.get("sampling", {})
    return bool(sampling.get("constrained") or sampling.get("structured"))


def _left_out(path: str, result: Result, why: str) -> LeftOut:
    steps = len(result["per_step"]) or result.get("aggregate", {}).get("steps", 0)
    return LeftOut(path, result.get("model") or Path(path).stem, own_score(result), steps, why)


def _rows(read: Sequence[tuple[str, Result]], rows_of: Path | str | None) -> dict[Key, Step]:
    """The steps of the rows that are ranked, by key."""
    if rows_of is not None:
        steps = keyed(read_result(rows_of)["per_step"], ())
        if not steps:
            raise ResultError(f"{rows_of}: contains no steps")
        return steps
    with_steps = [(path, result) for path, result in read if result["per_step"]]
    whole = [one for one in with_steps if not _unfinished(one[1]) and not _because(one[1])] or with_steps
    sets: dict[frozenset[object], list[dict[Key, Step]]] = {}
    for _, result in whole:
        steps = keyed(result["per_step"], ())
        signature = frozenset((key, tuple(step["ref_command_units"])) for key, step in steps.items())
        sets.setdefault(signature, []).append(steps)
    largest = max(sets.values(), key=lambda group: (len(group), len(group[0])))
    return largest[0]


def _unfinished(result: Result) -> str:
    """Why a run is not whole; empty if it is."""
    steps = len(result["per_step"])
    if shard := result.get("shard"):
        return f"is shard {shard['index']} of {shard['count']}: put the shards together with edge join"
    total = result.get("total_input_steps")
    if is_unfinished(result):
        return f"is unfinished: it has {steps_of(steps, total)}"
    return ""


def _judged(path: str, result: Result, rows: Mapping[Key, Step]) -> tuple[str, Candidate | None]:
    """Why a result is not ranked, or the candidate that it is."""
    if not result["per_step"]:
        return "has no steps: edge can neither check its scoring rules nor pair it", None
    if why := _unfinished(result):
        return why, None
    steps = keyed(result["per_step"], rows)
    there = [key for key in rows if key in steps]
    if not there:
        return "other rows: it has none of the ranked steps", None
    other = [key for key in there if row_difference(steps[key], rows[key])]
    if other:
        verb = "is" if len(other) == 1 else "are"
        return f"other rows: {counted(len(other), 'step')} of {len(there)} {verb} of another row", None
    if len(there) < len(rows):
        return f"rows missing: it has {len(there)} of the {len(rows)} ranked steps{_because(result)}", None
    chosen = tuple(steps[key] for key in rows)
    if failed := sum(bool(step.get("error")) for step in chosen):
        return (
            f"errors: {counted(failed, 'answer')} {'has' if failed == 1 else 'have'} an error of a server",
            None,
        )
    template = result.get("prompt_template", {})
    status = template.get("template_status")
    if not_from_template(template):
        if template.get("rank_eligible") is False and status in (None, "chat_template", "gemma4_patched"):
            return (
                f"prompts: it says that it is not rank-eligible (template_status: {status or 'not stated'})",
                None,
            )
        they = "not all of them" if status == "mixed" else "they"
        verb = "are" if status == "mixed" else "are not"
        return f"prompts: {they} {verb} from the model's own chat template ({status})", None
    return "", Candidate(path, result, chosen, tuple(_notes(result, len(steps), len(rows))))


def _because(result: Result) -> str:
    skipped = result.get("sampling", {}).get("skipped_too_long") or 0
    missing = result.get("engine", {}).get("rows_missing") or 0
    reasons = [f"{skipped} did not fit into its context"] * bool(skipped)
    reasons += [f"{missing} {'has' if missing == 1 else 'have'} no prediction"] * bool(missing)
    return f" ({', '.join(reasons)})" if reasons else ""


def _notes(result: Result, has: int, ranked: int) -> list[str]:
    notes = []
    if has > ranked:
        notes.append(f"{ranked} of its {has} steps {'is' if ranked == 1 else 'are'} ranked")
    if (stated := result.get("stated_steps")) is not None:
        notes.append(f"its figures are stated for {counted(stated, 'step')}; the file has {has}")
    if again := result.get("rescored", 0):
        notes.append(f"{counted(again, 'step')} scored again: other rules had scored them")
    if fields := result.get("reread"):
        notes.append(f"computed again, as the file states others: {reread_fields(fields)}")
    cut = sum(
        bool(step.get("closed_at_budget")) or step.get("finish_reason") == "length"
        for step in result["per_step"]
    )
    if cut:
        notes.append(f"{counted(cut, 'answer')} cut at the token limit")
    if result.get("prompt_template", {}).get("template_status") in (None, "unknown"):
        notes.append("how its prompts were written is unknown")
    return notes


def _identity(result: Result) -> tuple[object, ...]:
    """What two results of one model with one setting share."""
    digest = model_hash(result)
    name = result.get("model_path") or result.get("model") or ""
    settings = _identity_settings(result)
    if digest is not None:
        settings = {key: value for key, value in settings.items() if key != "dtype"}
    return (digest or name, adapter_key(result), tuple(sorted((k, str(v)) for k, v in settings.items())))


def _newest(found: Sequence[Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
    """Of results of one model and setting, the newest one; the others are left out."""
    groups: dict[tuple[object, ...], list[Candidate]] = {}
    for one in found:
        groups.setdefault(_identity(one.result), []).append(one)
    kept, older = [], []
    for group in groups.values():
        # Of results without a time, or of the same time, the one that is given last.
        newest = max(enumerate(group), key=lambda pair: (written_at(pair[1].result), pair[0]))[1]
        for one in group:
            if one is newest:
                continue
            same_time = written_at(one.result) == written_at(newest.result)
            how = "which is given later" if same_time else "which is newer"
            if not same_time and written_at(one.result) == float("-inf"):
                how = "which says when it was written"
            seeds = [each.result.get("sampling", {}).get("seed") for each in (one, newest)]
            sampled = named_settings(newest.result)["temperature"] not in (None, NOT_SET, 0, 0.0)
            but = ", but another seed" if sampled and seeds[0] != seeds[1] else ""
            sides = [named_settings(each.result) for each in (one, newest)]
            far = ", as far as both name them" if _unnamed(sides[0]) != _unnamed(sides[1]) else ""
            why = f"duplicate: {newest.path} is of the same model and settings{but}{far}, {how}"
            older.append(_left_out(one.path, one.result, why))
        if len(group) > 1:
            times = [written_at(one.result) for one in group]
            which = "newest" if times.count(max(times)) == 1 else "last given"
            note = f"the {which} of {len(group)} results of this model and settings"
            newest = Candidate(newest.path, newest.result, newest.steps, (*newest.notes, note))
        kept.append(newest)
    return kept, older


def _unnamed(settings: Mapping[str, object]) -> set[str]:
    return {name for name in _SETTINGS[:6] if settings[name] is None}


def written_at(result: Result) -> float:
    """When a result was written, in seconds since 1970; minus infinity if it does not say.

    A time without a zone is UTC, as the published scripts write it.
    """
    try:
        time = datetime.fromisoformat(str(result.get("timestamp")))
    except ValueError:
        return float("-inf")
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
