"""The words of a report: numbers as text, labels, definitions, and the verdict in sentences."""

from collections.abc import Sequence
from pathlib import Path

from edge.compare import findings
from edge.compare.findings import Figure
from edge.compare.paired import LEAST_DIFFERING
from edge.compare.verdict import NONE_DIFFERS, is_few
from edge.metrics import TERMS
from edge.report.contents import Entry, Report
from edge.report.measurements import CheckedMeasurement
from edge.system import text

LABELS = {name: label[0].upper() + label[1:] for name, label in findings.LABELS.items()}
KINDS = {"bucket": "Place in the task", "source_group": "Source group", "prompt_length": "Prompt length"}
DASH = "–"

DEFINITIONS = (
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
    return "> 99.9" if value is not None and value < 100 <= round(value, 1) else fixed(value, 1)


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
    compared, reference = report.compared, report.reference
    if not compared or reference is None:
        steps = sorted({entry.steps for entry in report.entries})
        bounds = " to ".join(f"{n:,}" for n in dict.fromkeys((steps[0], steps[-1])))
        return f"{text.counted(len(report.entries), 'result')} of {bounds} steps each; edge compared nothing."
    names = listed([entry.label for entry in compared])
    if report.comparison is not None and not report.comparison.paired:
        return (
            f"{names} compared with the published figures of {reference.label}. Without the steps of "
            f"{reference.label}, edge cannot pair steps."
        )
    joined = sorted({(entry.part.joined, entry.part.tasks) for entry in compared if entry.part})
    pairs = " or ".join(
        f"{text.counted(steps, 'step')} of {text.counted(tasks, 'task')}" for steps, tasks in joined[:3]
    )
    return f"{names} compared with {reference.label}, step by step, on {pairs}."


def verdict(report: Report) -> list[str]:
    """One or two paragraphs: the verdict on the score for all results, then the distance from the base."""
    paragraphs = []
    if (reference := report.reference) is not None and report.compared:
        paired = report.comparison is not None and report.comparison.paired
        if not paired or len(report.compared) == 1:
            for entry in report.compared[:3]:
                if (score := entry.figure("score")) is not None:
                    paragraphs.append(
                        f"Score of {entry.label} compared with {reference.label}: {_lower(score.sentence)}"
                    )
        else:
            # If there are quantized models, the verdict is about them. The other runs only separate causes.
            quantized = [entry for entry in report.compared if entry.run and not entry.run.unquantized]
            paragraphs += _paired_verdict(quantized or report.compared, reference.label)
    if distance := _distance(report.entries):
        paragraphs.append(distance)
    return paragraphs or [
        "These are results without a reference, so they cannot show the cost of quantization."
    ]


def _paired_verdict(entries: Sequence[Entry], reference: str) -> list[str]:
    by_verdict: dict[str, list[tuple[str, Figure]]] = {}
    for entry in entries:
        if (score := entry.figure("score")) is not None:
            found = "few" if is_few(score.verdict) else score.verdict
            found = found if found in ("worse", "better", "few", NONE_DIFFERS) else "undetected"
            by_verdict.setdefault(found, []).append((entry.label, score))
    paragraphs = []
    for name, verb in (("worse", "lost"), ("better", "gained")):
        if scores := by_verdict.get(name):
            changes = [
                f"{label} {verb} {figure('score', abs(score.difference or 0))} points "
                f"({interval('score', (score.low, score.high), sign=True)})"
                for label, score in scores
            ]
            paragraphs.append(f"Compared with {reference}, {listed(changes)}.")
    if scores := by_verdict.get("undetected"):
        names = listed([label for label, _ in scores])
        paragraph = f"No loss of score compared with {reference} was detected in {names}."
        known = sorted(score.detectable for _, score in scores if score.detectable is not None)
        if known:
            bounds = list(dict.fromkeys(figure("score", known[index]) for index in (0, -1)))
            each = " (depending on the file)" if len(bounds) > 1 else ""
            paragraph += f" A loss of more than {' to '.join(bounds)} points{each} would have been detected."
        paragraphs.append(paragraph)
    if scores := by_verdict.get(NONE_DIFFERS):
        names = listed([label for label, _ in scores])
        paragraphs.append(f"No step has another score than with {reference} in {names}.")
    if scores := by_verdict.get("few"):
        names = listed([label for label, _ in scores])
        paragraphs.append(
            f"In {names}, fewer than {LEAST_DIFFERING} tasks differ from {reference}: too few to say whether the score "
            "changed. More tasks, or the commands and the KL divergence, show more."
        )
    return paragraphs


def _distance(entries: Sequence[Entry]) -> str:
    """The mean divergence of at most four files from the base; "" if none was measured against another model."""
    by_path: dict[str, tuple[Entry, CheckedMeasurement]] = {}
    for entry in entries:
        m = entry.measured
        if m is not None and "kl_mean" in m.aggregate and m.base_sha256 != m.model_sha256:
            by_path.setdefault(m.path, (entry, m))
    measured = sorted(by_path.values(), key=lambda pair: pair[1].aggregate["kl_mean"])
    if not measured:
        return ""
    if len(measured) > 4:
        measured = [measured[0], measured[len(measured) // 2], measured[-1]]
    means = listed([f"{kl(m.aggregate['kl_mean'])} for {entry.label}" for entry, m in measured])
    bases = {base_name(m.base) for _, m in measured}
    base = f"the base model {bases.pop()}" if len(bases) == 1 else "the base model"
    sentence = f"Mean KL divergence from {base}, in nats per token: {means}."
    agree = [
        percent(m.aggregate["top1_agreement_pct"]) for _, m in measured if "top1_agreement_pct" in m.aggregate
    ]
    if agree:
        who = "The file and the base" if len(agree) == 1 else "Each file and the base"
        sentence += f" {who} have the same most probable token for {listed(agree)} % of the tokens."
    return sentence


def base_name(base: str) -> str:
    """The name of a base in a report: the last part of a path, so that no folders are published."""
    return Path(base.replace("\\", "/")).name or base


def _lower(sentence: str) -> str:
    return (
        sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() or sentence[1:2] == " " else sentence
    )
