"""A report in a short form, as Markdown."""

import re
from collections.abc import Mapping, Sequence

from edge.report import patterns, trial_words, words
from edge.report.contents import MAIN, Entry, Report
from edge.report.plots import Drawing
from edge.system.tables import clean, table
from edge.system.text import visible

_MARK = "†"
_PLOTS = (
    "score-solved",
    "size-score",
    "size-kl",
    "difference-score",
    "causes",
)  # more plots would make a card too long


def to_markdown(report: Report, drawings: Sequence[Drawing], links: Mapping[str, str]) -> str:
    """The verdict, the table of files and the table of differences. `links`: the paths of plots, by their names."""
    lines = [f"## {escaped(words.title(report))}", ""]
    said = (words.layman(report), words.expert(report), *words.remarks(report))
    lines += [line for sentence in said if sentence for line in (escaped(sentence), "")]
    lines += [escaped(words.scope(report)), ""]
    lines += [line for note in report.notes for line in (escaped(note), "")]
    lines += [*_files(report), ""]
    if any(entry.published for entry in report.files):
        lines += [patterns.SHORT_PUBLISHED(), ""]
    lines += [patterns.SHORT_TABLE(), ""]
    if report.tried:
        lines += [*_trials(report), ""]
    if report.compared:
        lines += [*_differences(report), ""]
    shown = [drawing for drawing in drawings if drawing.name in links and drawing.name in _PLOTS]
    for drawing in shown:
        alt = escaped(f"{drawing.title}: {drawing.alt}").replace("[", "(").replace("]", ")")
        target = (
            links[drawing.name]
            .replace("%", "%25")
            .replace(" ", "%20")
            .replace("(", "%28")
            .replace(")", "%29")
        )
        lines += [f"![{alt}]({target})", ""]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """A text on one line, escaped so that a Markdown renderer shows it unchanged."""
    return re.sub(r"[\\`*\[\]<>#~|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", clean(visible(text)).replace("\\|", "|"))


def _files(report: Report) -> list[str]:
    columns: list[tuple[str, list[str]]] = [
        ("result", [escaped(e.label) + (f" {_MARK}" if e.published else "") for e in report.files]),
        ("tasks solved %", [words.tasks_solved(e) for e in report.files]),
        ("size", [words.size(e.n_bytes) for e in report.files]),
        ("bits/weight", [words.fixed(e.bits_per_weight, 2) for e in report.files]),
        ("score", [words.figure("score", e.score) for e in report.files]),
        ("95 % interval", [words.interval("score", e.score_interval) for e in report.files]),
        ("difference", [_difference(e) for e in report.files]),
        *((words.LABELS[name], [_figure(e, name) for e in report.files]) for name in MAIN[1:]),
        ("Same commands %", [words.same_commands(e) for e in report.files]),
        ("KL mean", [words.kl(_measured(e, "kl_mean")) for e in report.files]),
        ("KL p99", [words.kl(_measured(e, "kl_p99")) for e in report.files]),
        ("top-1 %", [words.percent(_measured(e, "top1_agreement_pct")) for e in report.files]),
        ("tokens/s", [words.fixed(e.tokens_per_second, 1) for e in report.files]),
        ("peak memory", [words.size(e.peak_bytes) for e in report.files]),
    ]
    kept = [(name, cells) for name, cells in columns if any(cell != words.DASH for cell in cells)]
    rows = list(zip(*(cells for _, cells in kept), strict=True))
    return table([name for name, _ in kept], rows, right=range(1, len(kept)))


def _trials(report: Report) -> list[str]:
    """The trials, their differences from the reference, and what the score says about them."""
    header = ("trials", "solved", "share, 95 % interval", "difference", "95 % interval")
    rows = []
    for one in report.tried:
        pair = one.pair
        difference, span = words.DASH, words.DASH
        if pair is not None:
            difference = words.fixed(pair["difference"], 1, sign=True)
            if pair["low"] is not None:
                span = " … ".join(words.fixed(pair[end], 1, sign=True) for end in ("low", "high"))
        share = trial_words.share(one.figures["solved_share"])
        rows.append((escaped(one.label), trial_words.of_how_many(one), share, difference, span))
    lines = table(header, rows, right=range(1, len(header)))
    said = [f"{label}: {text}" for label, text in trial_words.sentences(report)]
    said += [text for text in (trial_words.unmatched(report), trial_words.prediction(report)) if text]
    return [*lines, "", *(f"- {escaped(text)}" for text in said)]


def _figure(entry: Entry, name: str) -> str:
    value = entry.figures.get(name)
    return words.figure(name, value) + (f" {_MARK}" if entry.published and value is not None else "")


def _measured(entry: Entry, name: str) -> float | None:
    return entry.measured.aggregate.get(name) if entry.measured else None


def _difference(entry: Entry) -> str:
    score = entry.figure("score")
    if score is None or score.difference is None:
        return words.DASH
    difference = words.figure("score", score.difference, sign=True)
    bounds = words.interval("score", (score.low, score.high), sign=True)
    return difference if bounds == words.DASH else f"{difference} ({bounds})"


def _differences(report: Report) -> list[str]:
    header = ("result", "figure", "reference", "ours", "difference", "95 % interval", "verdict")
    rows = []
    for entry in report.files:
        for name in MAIN:
            if (figure := entry.figure(name)) is not None:
                rows.append(
                    (
                        escaped(entry.label),
                        words.LABELS[name],
                        words.figure(name, figure.reference),
                        words.figure(name, figure.ours),
                        words.figure(name, figure.difference, sign=True),
                        words.interval(name, (figure.low, figure.high), sign=True),
                        escaped(figure.sentence),
                    )
                )
    return table(header, rows, right=range(2, 6))
