"""The words of a report: numbers as text, labels, definitions, and the verdict in sentences."""

from collections.abc import Sequence
from pathlib import Path

from edge.compare import findings
from edge.compare.causes import is_constrained
from edge.compare.findings import Figure
from edge.compare.labels import same_model
from edge.compare.notes import names_adapters, own_notes
from edge.compare.verdict import NONE_DIFFERS, is_few, looks_whole
from edge.metrics import TERMS
from edge.report import patterns
from edge.report.contents import Entry, Report
from edge.report.group import Made, differing
from edge.report.measurements import CheckedMeasurement
from edge.report.trial_words import counting, share, solved, unit
from edge.system import text

LABELS = {name: label[0].upper() + label[1:] for name, label in findings.LABELS.items()}
KINDS = {"bucket": "Place in the task", "source_group": "Source group", "prompt_length": "Prompt length"}
DASH = "–"
_ADAPTERS_NAMED = "the adapters that the results name"
_KINDS = {"cache": "type of the KV cache"}

DEFINITIONS = (
    (
        "Tasks solved",
        "The percentage of trials whose task was solved. In a trial, the model works on a task in a sandbox, and the "
        "task's own tests then look at the files. With one attempt a task the interval is Wilson's; with more, whole "
        "tasks are resampled. A share is about these tasks and limits only.",
    ),
    (
        "Score",
        "100 × the mean command F1 over all steps (corrected TB2-lite): how well the commands of an answer match the "
        "recorded commands, each by the overlap of their shell words. 100 is a perfect match.",
    ),
    ("First command", "The percentage of steps whose first command is exactly the recorded one."),
    (
        "Valid JSON",
        "The percentage of answers that contain a JSON object. With the grammar it is 100 % unless an answer was "
        "damaged.",
    ),
    (
        "Same commands",
        "The percentage of steps in which a result and the reference have the same commands, right or wrong, with its "
        "95 % interval. It shows small changes that the score does not show.",
    ),
    (
        "95 % interval",
        "Over whole tasks, because the steps of one task depend on each other. A difference has an interval if at "
        "least 6 tasks differ. If it includes 0, these steps cannot show whether there is a difference.",
    ),
    (
        "Smallest detectable",
        "The loss that would have been detected with a probability of 80 % at the 5 % level. A smaller loss can exist "
        "and remain undetected.",
    ),
    (
        "p (McNemar)",
        "The exact probability of a split at least as uneven as this one, among the steps that only one side has "
        "right, if both sides were equally good. It treats steps as independent; the interval does not.",
    ),
    (
        "KL divergence",
        "How far the model's next-token probabilities are from those of the base model on the same text, in nats per "
        "token. 0 means no difference. The mean, the median, and the 90th and 99th percentiles are over tokens. The "
        "measurement needs no generated text and has far less noise than a score.",
    ),
    (
        "Top-1 agreement",
        "The percentage of tokens where both models have the same most probable next token.",
    ),
    (
        "Perplexity",
        "e to the power of the mean negative log-likelihood per token. A perplexity of n is that of a choice among n "
        "equally probable tokens.",
    ),
    (
        "Tokens per second",
        "Answer tokens divided by the seconds of the whole evaluation, which includes reading the prompts, on the "
        "machine that is named under How it was made. Compare files only on the same machine.",
    ),
    (
        "Peak memory",
        "The largest resident size of the process, including mapped pages of the model file. In the results of a sweep "
        "it also includes some tens of megabytes that the process kept from earlier steps.",
    ),
    (
        "Bits per weight",
        "8 × the bytes of all tensors, divided by the number of their weights. Embeddings and norms are included.",
    ),
)


def figure(name: str, value: float | None, *, sign: bool = False) -> str:
    """A metric with the decimal places that it has in a result, and a real minus sign; a dash for None."""
    digits = 2 if name in ("score", "next_action_score") else TERMS[name][1]
    return fixed(value, digits, sign=sign)


def fixed(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A number with `digits` decimal places; a dash for None. `sign`: with a plus sign if it is positive."""
    if value is None:
        return DASH
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A percentage with one decimal place. A value that is not 100 never reads 100.0."""
    return "> 99.9" if value is not None and looks_whole(value) else fixed(value, 1)


def interval(name: str, bounds: tuple[float | None, float | None] | None, *, sign: bool = False) -> str:
    """`low … high`, or a dash if a bound is missing."""
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return DASH
    return " … ".join(figure(name, bound, sign=sign) for bound in bounds)


def kl(value: float | None) -> str:
    """A KL divergence, a likelihood or a perplexity with three digits."""
    if value is None:
        return DASH
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 1e-4:
        return f"{value:#.3g}".rstrip(".").replace("-", "−")
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}·10{raised}".replace("-", "−")


def size(n_bytes: float | None) -> str:
    """A size in units of 10^6 or 10^9 bytes; a dash for None."""
    if n_bytes is None:
        return DASH
    return text.size(n_bytes, 2)


def p_value(value: float | None) -> str:
    """A probability with three decimal places; a dash for None."""
    return DASH if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def engine(entry: Entry) -> str:
    """The engine that wrote the answers, and whether a grammar constrained them."""
    how = {True: "grammar", False: "no grammar", None: ""}[entry.constrained]
    return " · ".join(part for part in (entry.backend, how) if part)


def title(report: Report) -> str:
    """The page's heading."""
    if report.title:
        return report.title
    return f"What quantization cost {report.subject}".rstrip() if report.subject else "What quantization cost"


def scope(report: Report) -> str:
    """What was compared, and on how many steps of how many tasks."""
    compared, reference, entries = _compared(report), report.reference, report.entries
    if not compared or reference is None:
        least, most = min(entry.steps for entry in entries), max(entry.steps for entry in entries)
        steps = text.counted(most, "step") if least == most else f"{least:,} to {text.counted(most, 'step')}"
        each = " each" if len(entries) > 1 else ""
        return patterns.SCOPE_NONE(results=text.counted(len(entries), "result"), steps=f"{steps}{each}")
    names = listed([entry.label for entry in compared])
    if report.comparison is not None and not report.comparison.paired:
        return patterns.SCOPE_PUBLISHED(files=names, reference=reference.label)
    said = [patterns.SCOPE(files=names, reference=reference.label, pairs=_pairs(compared))]
    if others := report.others:
        said.append(
            patterns.SCOPE_OTHERS(
                runs=text.counted(len(others), "other run"), verb="is" if len(others) == 1 else "are"
            )
        )
    return " ".join(said)


def layman(report: Report) -> str:
    """What quantization cost, in one sentence: by tasks solved in trials if there are any, else by commands."""
    reference, files = report.reference, report.quantized
    tried = counting(files if reference and files else report.files)
    own = reference.tried if reference and counting([reference]) else None
    if reference and own and (same := [(label, one) for label, one in tried if one.same_tasks]):
        shares = listed([f"{label} {solved(one, unit(own))}" for label, one in same])
        return patterns.SOLVED(reference=_original(reference), own=solved(own), files=shares)
    alone = tried if own is None else []
    shares = listed([f"{label} {solved(one)}" for label, one in alone]) if alone else ""
    replayed = _by_commands(reference, files, report)
    return f"{patterns.SOLVED_ALONE(files=shares)} {replayed}" if shares else replayed


def _by_commands(reference: Entry | None, files: Sequence[Entry], report: Report) -> str:
    if reference is None:
        one = len(report.entries) == 1
        these = "This is a result" if one else "These are results"
        return patterns.NO_REFERENCE(these=these, they="it" if one else "they")
    if not files:
        return patterns.NOTHING_PAIRED(reference=reference.label)
    original = _original(reference)
    if report.comparison is None or not report.comparison.paired:
        scores = listed([f"{figure('score', entry.score)} ({entry.label})" for entry in files])
        theirs = figure("score", reference.score)
        these, their = ("this file", "its") if len(files) == 1 else ("these files", "their")
        return patterns.PUBLISHED(
            these=these, scores=scores, reference=reference.label, score=theirs, their=their
        )
    sized = sorted((e for e in files if e.n_bytes), key=lambda e: (-(e.n_bytes or 0), e.label))
    if not reference.n_bytes or len(sized) < len(files):
        if len(files) == 1:
            return patterns.SAME_ONE(file=files[0].label, reference=original, same=_same(files[0]))
        shares = [f"{_same(entry)} ({entry.label})" for entry in files]
        return patterns.SAME(reference=original, shares=listed(shares))
    first, last = sized[0], sized[-1]
    spaces = [f"{100 * (entry.n_bytes or 0) / reference.n_bytes:.0f}" for entry in (first, last)]
    if len(sized) == 1:
        return patterns.SPACE(file=first.label, space=spaces[0], reference=original, same=_same(first))
    return patterns.SPACES(
        first=first.label,
        reference=original,
        space=spaces[0],
        same=_same(first),
        last=last.label,
        last_space=spaces[1],
        last_same=_same(last),
    )


def expert(report: Report) -> str:
    """The verdict on the score for all files, and the distance from the base, in one sentence; "" without either."""
    reference, files = report.reference, report.quantized
    clauses = []
    if reference is not None and files and report.comparison is not None:
        if report.comparison.paired:
            clauses = _clauses(files)
        else:
            clauses = [_unpaired(entry) for entry in files[:3] if entry.figure("score") is not None]
    if distance := _distance(report.files):
        clauses.append(distance)
    if not clauses:
        return ""
    said = "; ".join(clauses)
    if reference is None or not files or report.comparison is None:
        return patterns.EXPERT_ALONE(clauses=said)
    if not report.comparison.paired:
        return patterns.EXPERT_PUBLISHED(reference=reference.label, clauses=said)
    return patterns.EXPERT(reference=reference.label, pairs=_pairs(files), clauses=said)


def few_note(report: Report) -> str:
    """What shows more than the score, if too few tasks differ for a verdict on some file; "" otherwise."""
    scores = [score for entry in report.quantized if (score := entry.figure("score")) is not None]
    few = any(is_few(score.verdict) or score.verdict == NONE_DIFFERS for score in scores)
    return patterns.FEW_NOTE() if few else ""


def besides(report: Report) -> str:
    """What differs in the compared runs besides the model file; "" if nothing is known to differ."""
    reference = report.reference
    kinds: dict[str, None] = {}
    for entry in report.quantized if reference else ():
        sides = (reference, entry)
        engines = [side.backend for side in sides if side]
        if "unknown" not in engines and engines[0] != engines[1]:
            kinds[f"the engine ({engines[0]} and {engines[1]})"] = None
        grammars = [_guided(side) for side in sides if side]
        if None not in grammars and grammars[0] != grammars[1]:
            kinds["the grammar"] = None
        if reference and reference.run and entry.run:
            found = differing(Made(reference.run.sampling, reference.run), entry.run)
            others = (kind for kind in found if kind not in ("engine", "grammar"))
            kinds |= {f"the {_KINDS.get(kind, kind.replace('_', ' '))}": None for kind in others}
            if "the adapters" in kinds and not all(
                names_adapters(e.result) for e in (reference.run, entry.run)
            ):
                del kinds["the adapters"]
                kinds[_ADAPTERS_NAMED] = None
    verb = "differ" if len(kinds) > 1 or {"the adapters", _ADAPTERS_NAMED} & kinds.keys() else "differs"
    return patterns.BESIDES(what=listed(list(kinds)), verb=verb) if kinds else ""


def _guided(entry: Entry) -> bool | None:
    """Whether a grammar or a schema guided the answers, as far as the result says."""
    sampling = entry.run.sampling if entry.run else {"constrained": entry.constrained}
    return is_constrained(sampling, None if entry.backend == "unknown" else entry.backend)


def remarks(report: Report) -> list[str]:
    """What a reader must know beside the verdict: what else differs, what shows more, and what is missing."""
    return [said for said in (besides(report), few_note(report), *cautions(report)) if said]


def cautions(report: Report) -> list[str]:
    """What is missing or unusual in the reference and the files, as sentences."""
    reference = report.reference
    found = []
    for entry in report.files:
        part = entry.part
        if part and part.joined and reference and part.only_ours + part.only_reference:
            ours, theirs = (text.counted(n, "step") for n in (part.only_ours, part.only_reference))
            found.append(
                patterns.OTHER_STEPS(file=entry.label, reference=reference.label, ours=ours, theirs=theirs)
            )
        runs = (entry.run, reference.run) if part and reference else (None, None)
        if runs[0] and runs[1] and reference and same_model(runs[0].result, runs[1].result):
            found.append(patterns.SAME_MODEL(file=entry.label, reference=reference.label))
        found += own_notes(entry.run.result, entry.label) if entry.run else []
    lacking = [
        entry.label for entry in report.files if not entry.is_reference and entry.run and not entry.run.steps
    ]
    if lacking and reference and reference.run and reference.run.steps:
        one = len(lacking) == 1
        found.append(
            patterns.NO_STEPS(
                files=listed(lacking),
                verb="has" if one else "have",
                them="it" if one else "them",
                reference=reference.label,
            )
        )
    return found


def _compared(report: Report) -> list[Entry]:
    return [entry for entry in report.files if entry.part is not None]


def _pairs(entries: Sequence[Entry]) -> str:
    """On how many steps of how many tasks: `143 steps of 100 tasks`."""
    joined = sorted({(entry.part.joined, entry.part.tasks) for entry in entries if entry.part})
    return " or ".join(
        f"{text.counted(steps, 'step')} of {text.counted(tasks, 'task')}" for steps, tasks in joined[:3]
    )


def _original(reference: Entry) -> str:
    if reference.run is not None and reference.run.unquantized:
        return f"the unquantized model ({reference.label})"
    return reference.label


def _same(entry: Entry) -> str:
    """The percentage of steps with the same commands as the reference."""
    share = entry.part.agreement.get("same_commands_pct") if entry.part else None
    return f"{percent(share)} %"


def same_commands(entry: Entry) -> str:
    """The percentage of steps with the same commands as the reference, and its 95 % interval; a dash without it."""
    if entry.part is None or "same_commands_pct" not in entry.part.agreement:
        return DASH
    low, high = entry.part.agreement_intervals["same_commands_pct"]
    return f"{percent(entry.part.agreement['same_commands_pct'])} ({low:.1f} … {high:.1f})"


def tasks_solved(entry: Entry) -> str:
    """The percentage of trials whose task was solved, and its 95 % interval; a dash without trials."""
    return share(entry.tried.figures["solved_share"]) if entry.tried else DASH


def _clauses(entries: Sequence[Entry]) -> list[str]:
    """What the scores say, files with the same verdict together."""
    by_verdict: dict[str, list[tuple[str, Figure]]] = {}
    for entry in entries:
        if (score := entry.figure("score")) is not None:
            found = "few" if is_few(score.verdict) else score.verdict
            found = found if found in ("worse", "better", "few", NONE_DIFFERS) else "undetected"
            by_verdict.setdefault(found, []).append((entry.label, score))
    names = {found: listed([label for label, _ in scores]) for found, scores in by_verdict.items()}
    clauses = []
    for name, pattern in (("worse", patterns.LOST), ("better", patterns.GAINED)):
        for label, score in by_verdict.get(name, ()):
            points = figure("score", abs(score.difference or 0))
            bounds = interval("score", (score.low, score.high), sign=True)
            clauses.append(pattern(file=label, points=points, bounds=bounds))
    undetected = by_verdict.get("undetected", [])
    if known := [(label, score.detectable) for label, score in undetected if score.detectable is not None]:
        sizes = sorted(size for _, size in known)
        bounds = " to ".join(dict.fromkeys(figure("score", size) for size in (sizes[0], sizes[-1])))
        files = listed([label for label, _ in known])
        clauses.append(patterns.UNDETECTED_UP_TO(files=files, points=bounds))
    if unknown := [label for label, score in undetected if score.detectable is None]:
        clauses.append(patterns.UNDETECTED(files=listed(unknown)))
    if NONE_DIFFERS in by_verdict:
        clauses.append(patterns.NO_OTHER_SCORE(files=names[NONE_DIFFERS]))
    if "few" in by_verdict:
        clauses.append(patterns.FEW(files=names["few"]))
    return clauses


def _unpaired(entry: Entry) -> str:
    score = entry.figure("score")
    assert score is not None
    return patterns.UNPAIRED_SCORE(file=entry.label, sentence=_lower(score.sentence.rstrip(".")))


def _distance(entries: Sequence[Entry]) -> str:
    """The smallest and the largest mean divergence from the base; "" if none was measured against another model."""
    by_path: dict[str, tuple[Entry, CheckedMeasurement]] = {}
    for entry in entries:
        m = entry.measured
        if m is not None and "kl_mean" in m.aggregate and m.base_sha256 != m.model_sha256:
            by_path.setdefault(m.path, (entry, m))
    measured = sorted(by_path.values(), key=lambda pair: pair[1].aggregate["kl_mean"])
    if not measured:
        return ""
    ends = measured if len(measured) == 1 else [measured[0], measured[-1]]
    means = " to ".join(f"{kl(m.aggregate['kl_mean'])} ({entry.label})" for entry, m in ends)
    bases = {base_name(m.base) for _, m in measured}
    return patterns.DISTANCE(base=bases.pop() if len(bases) == 1 else "the base model", means=means)


def base_name(base: str) -> str:
    """The name of a base in a report: the last part of a path, so that no folders are published."""
    return Path(base.replace("\\", "/")).name or base


def _lower(sentence: str) -> str:
    return (
        sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() or sentence[1:2] == " " else sentence
    )
