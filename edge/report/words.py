"""How a report says things: its numbers, its verdict in plain sentences, its labels and definitions."""

from collections.abc import Sequence
from pathlib import Path

from edge.compare import findings
from edge.compare.findings import Figure
from edge.metrics import TERMS
from edge.report.contents import Entry, Report
from edge.report.evidence import Measurement
from edge.system import text

LABELS = {name: label[0].upper() + label[1:] for name, label in findings.LABELS.items()}
KINDS = {"bucket": "Place in the task", "source_group": "Source group", "prompt_length": "Prompt length"}
DASH = "–"

DEFINITIONS = (
    (
        "Score",
        "100 × the mean command F1 over all steps (corrected TB2-lite): how well the commands of an answer match "
        "those of the recorded one, each by the overlap of their shell words. 100 is a perfect match.",
    ),
    ("First command", "The share of steps whose first command is exactly the recorded one."),
    (
        "Valid JSON",
        "The share of answers that hold a JSON object. With the grammar it is 100 % unless an answer was spoilt.",
    ),
    (
        "95 % interval",
        "From drawing whole tasks anew, 10,000 times: steps of one task depend on each other. An interval of a "
        "difference that holds 0 means that these steps cannot tell whether there is a difference.",
    ),
    (
        "Smallest detectable",
        "The loss that would have been detected with 80 % probability at the 5 % level. What is smaller may well be "
        "there and unseen.",
    ),
    (
        "p (McNemar)",
        "The exact probability of so uneven a split, or a more uneven one, among the steps that one side alone has "
        "right, if both were equally good. It takes steps as independent, the interval does not.",
    ),
    (
        "KL divergence",
        "How far the model's next-token probabilities are from the base model's, on the same text, in nats a token; 0 "
        "is no difference. Mean, median, 90th and 99th percentile are over tokens. It needs no generated text and is "
        "far less noisy than a score.",
    ),
    ("Top-1 agreement", "The share of tokens where both models find the same next token likeliest."),
    (
        "Perplexity",
        "exp of the mean negative log-likelihood of a token: among how many equally likely tokens the model chooses.",
    ),
    (
        "Tokens a second",
        "Answer tokens by the seconds of the whole evaluation, the reading of prompts included, on the machine named "
        "below. It compares files on that machine alone.",
    ),
    (
        "Peak memory",
        "The process' largest resident size, mapped pages of the model file included. Of a sweep's results it "
        "also holds what the process kept from before, some tens of megabytes.",
    ),
    (
        "Bits per weight",
        "8 × the bytes of all tensors by the number of their weights: embeddings and norms included.",
    ),
)


def figure(name: str, value: float | None, *, sign: bool = False) -> str:
    """A metric with the decimal places that it has in a result; a real minus, a dash where there is none."""
    digits = 2 if name in ("score", "next_action_score") else TERMS[name][1]
    return fixed(value, digits, sign=sign)


def fixed(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A number with so many decimal places, with a plus where `sign` asks for one."""
    if value is None:
        return DASH
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}".replace("-", "−")


def interval(name: str, bounds: tuple[float | None, float | None] | None, *, sign: bool = False) -> str:
    """`low … high`, or a dash."""
    if bounds is None or bounds[0] is None or bounds[1] is None:
        return DASH
    return " … ".join(figure(name, bound, sign=sign) for bound in bounds)


def kl(value: float | None) -> str:
    """A KL divergence, a likelihood or a perplexity to three digits."""
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
    """Bytes in 10^6 or 10^9."""
    if n_bytes is None:
        return DASH
    return text.size(n_bytes, 2)


def p_value(value: float | None) -> str:
    """A probability to three places."""
    return DASH if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(number: int, what: str) -> str:
    """`1 step`, `143 steps`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def engine(entry: Entry) -> str:
    """Who wrote the answers, and whether a grammar held them."""
    how = {True: "grammar", False: "no grammar", None: ""}[entry.constrained]
    return " · ".join(part for part in (entry.backend, how) if part)


def title(report: Report) -> str:
    """The page's heading."""
    if report.title:
        return report.title
    return f"What quantization cost {report.subject}".rstrip() if report.subject else "What quantization cost"


def scope(report: Report) -> str:
    """What was compared, on how many steps of how many tasks."""
    compared, reference = report.compared, report.reference
    if not compared or reference is None:
        steps = sorted({entry.steps for entry in report.entries})
        told = " to ".join(f"{n:,}" for n in dict.fromkeys((steps[0], steps[-1])))
        return f"{count(len(report.entries), 'result')} of {told} steps each; nothing is compared."
    names = listed([entry.label for entry in compared])
    if report.comparison is not None and not report.comparison.paired:
        return (
            f"{names} beside {reference.label}, of which only figures were published: nothing can be paired."
        )
    joined = sorted({(entry.part.joined, entry.part.tasks) for entry in compared if entry.part})
    pairs = " or ".join(f"{count(steps, 'step')} of {count(tasks, 'task')}" for steps, tasks in joined[:3])
    return f"{names} against {reference.label}, step by step on {pairs}."


def verdict(report: Report) -> list[str]:
    """One or two plain sentences: the score's verdict for all results, then the distance from the base."""
    sentences = []
    if (reference := report.reference) is not None and report.compared:
        paired = report.comparison is not None and report.comparison.paired
        if not paired or len(report.compared) == 1:
            for entry in report.compared[:3]:
                if (score := entry.figure("score")) is not None:
                    sentences.append(
                        f"{entry.label}, score against {reference.label}: {_lower(score.sentence)}"
                    )
        else:
            # Where there are quantized models, the verdict is about them; other runs tell causes apart.
            quantized = [entry for entry in report.compared if entry.run and not entry.run.unquantized]
            sentences += _paired_verdict(quantized or report.compared, reference.label)
    if told := _distance(report.entries):
        sentences.append(told)
    return sentences or [
        "These are results without a reference: what quantization cost cannot be told from them."
    ]


def _paired_verdict(entries: Sequence[Entry], reference: str) -> list[str]:
    scores = [(entry.label, entry.figure("score")) for entry in entries]
    by_word: dict[str, list[tuple[str, Figure]]] = {}
    for label, score in scores:
        if score is not None:
            word = score.verdict if score.verdict in ("worse", "better") else "undetected"
            by_word.setdefault(word, []).append((label, score))
    sentences = []
    for word, verb in (("worse", "lost"), ("better", "gained")):
        if found := by_word.get(word):
            told = [
                f"{label} {verb} {figure('score', abs(score.difference or 0))} points "
                f"({interval('score', (score.low, score.high), sign=True)})"
                for label, score in found
            ]
            sentences.append(f"Against {reference}, {listed(told)}.")
    if found := by_word.get("undetected"):
        known = sorted(score.detectable for _, score in found if score.detectable is not None)
        least = [figure("score", known[index]) for index in (0, -1)] if known else []
        bound = " to ".join(dict.fromkeys(least))
        which = (
            f"; one of more than {bound} points{', by file,' if len(set(least)) > 1 else ''} would have been"
        )
        names = listed([label for label, _ in found])
        sentences.append(f"No loss of score against {reference} detected in {names}{which if bound else ''}.")
    return sentences


def _distance(entries: Sequence[Entry]) -> str:
    by_path: dict[str, tuple[Entry, Measurement]] = {}
    for entry in entries:
        m = entry.measured
        # A base measured against itself tells nothing.
        if m is not None and "kl_mean" in m.aggregate and m.data.get("base_sha256") != m.model_sha256:
            by_path.setdefault(m.path, (entry, m))
    measured = list(by_path.values())
    if not measured:
        return ""
    measured.sort(key=lambda pair: pair[1].aggregate["kl_mean"])
    if len(measured) > 4:
        measured = [measured[0], measured[len(measured) // 2], measured[-1]]
    told = [f"{kl(m.aggregate['kl_mean'])} for {entry.label}" for entry, m in measured]
    agree = [
        fixed(m.aggregate["top1_agreement_pct"], 1)
        for _, m in measured
        if "top1_agreement_pct" in m.aggregate
    ]
    bases = {base_name(m.base) for _, m in measured}
    base = f"the base model {bases.pop()}" if len(bases) == 1 else "the base model"
    tail = f"; both find the same token likeliest for {listed(agree)} % of tokens" if agree else ""
    return f"Mean KL divergence from {base}, in nats a token: {listed(told)}{tail}."


def base_name(base: str) -> str:
    """A model as a report calls it: the last part of a path, since folders are nobody's business."""
    return Path(base.replace("\\", "/")).name or base


def _lower(sentence: str) -> str:
    return (
        sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() or sentence[1:2] == " " else sentence
    )
