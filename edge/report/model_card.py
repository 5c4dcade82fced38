"""A Hugging Face model card of a repository with quantized files: front matter, files, commands, and what is unknown.

The facts come from the results, from the metadata of the GGUFs, or from the caller. None is guessed.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge.compare.verdict import NONE_DIFFERS, is_few
from edge.errors import EdgeError, ResultError
from edge.formats.gguf import model_sha256, read_metadata
from edge.llama.memory import buffers, read_shape
from edge.llama.placement import DEFAULT_CONTEXT
from edge.replay.known import find_known
from edge.report import patterns, trial_words, words
from edge.report.contents import Entry, Report, Tried
from edge.report.drawings import beaten_files
from edge.report.short_form import escaped
from edge.system.tables import table
from edge.system.text import counted, masked

PIPELINE = "text-generation"
_SAMPLING = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "seed": None}
_DEFAULTS: Mapping[str, object] = {
    **_SAMPLING,
    "style": "auto",
    "text_share": 0.6,
    "thinking_mode": "auto",
    "strip_thinking_history": "auto",
    "kv_type": "f16",
}
"""The settings of `edge eval` that change answers, with their defaults; `edge trial` has the first ones."""


@dataclass(frozen=True)
class CardFacts:
    """What a model card needs beside the results. None or (): from the metadata of the GGUFs, else unknown.

    `path`: the file to write, in a repository README.md.
    """

    path: Path
    base_model: str | None = None
    """Hub id of the checkpoint that was quantized."""
    license: str | None = None
    """Licence of the files, as the hub names it: apache-2.0, other, …"""
    quantized_by: str | None = None
    """Who quantized the files."""
    pipeline_tag: str = PIPELINE
    tags: tuple[str, ...] = ()
    """More tags. `gguf` is always one."""
    ggufs: tuple[Path, ...] = ()
    """The quantized files. Their metadata gives facts; their headers give the memory."""
    context: int | None = None
    """Context length for the memory, in tokens. None: that of the known model, else 8,192 or the maximum."""


def to_card(report: Report, facts: CardFacts) -> str:
    """The model card as Markdown with YAML front matter.

    Raises ResultError if no file was compared, if the base model is unknown, or if files name different facts, and
    ModelFileError for a GGUF that cannot be read.
    """
    files = [entry for entry in _largest_first(report.quantized) if entry.run]
    if not files:
        raise ResultError(f"{facts.path}: no quantized file was compared: give results and a --reference")
    _check_names(files, facts.path)
    ggufs = _by_file(files, facts)
    stated = [read_metadata(path) for path in ggufs.values()]
    base = facts.base_model or _one(facts.path, "base model", "--base-model", map(_source, report.entries))
    if base is None:
        raise ResultError(
            f"{facts.path}: the base model is unknown: the files do not name it; give it with --base-model OWNER/NAME"
        )
    front, unknown = _front(facts, base, stated)
    context = facts.context or _context(base, ggufs)
    memory = {label: _memory(path, context) for label, path in ggufs.items()}
    lines = [
        "---",
        front,
        "---",
        "",
        f"# {escaped(report.title or patterns.CARD_TITLE(name=base.rpartition('/')[2]))}",
        "",
    ]
    said = (words.layman(report), words.expert(report), *words.remarks(report))
    lines += [line for sentence in said if sentence for line in (escaped(sentence), "")]
    lines += ["## Files", "", *_table(report, files, memory, context), ""]
    solved = [patterns.CARD_SOLVED()] if trial_words.counting(report.files) else []
    lines += [escaped(" ".join([*solved, patterns.CARD_TABLE()])), ""]
    lines += _trials(report)
    lines += ["## Make it again", "", *_commands(report, files, base), ""]
    lines += ["## What was not measured", ""]
    lines += [f"- {escaped(text)}" for text in _unmeasured(report, files, memory)]
    if unknown:
        lines += ["", "## What is unknown", "", *(f"- {escaped(text)}" for text in unknown)]
    return "\n".join(lines) + "\n"


def _largest_first(files: Sequence[Entry]) -> list[Entry]:
    return sorted(files, key=lambda entry: -(entry.n_bytes or 0))


def _check_names(files: Sequence[Entry], card: Path) -> None:
    """Raise ResultError if two files have one name: no repository can have both, and their commands would be equal."""
    owner: dict[str, str] = {}
    for entry in files:
        if (other := owner.setdefault(_file_name(entry), entry.label)) != entry.label:
            raise ResultError(
                f"{card}: {other} and {entry.label} are both of a file named {_file_name(entry)}: a repository needs "
                "different names; rename one, and answer with it again"
            )


def _by_file(files: Sequence[Entry], facts: CardFacts) -> dict[str, Path]:
    """The GGUF of each entry that has one, by label. Raises ResultError for a GGUF without a result."""
    by_digest = {str(_provenance(entry, "model_sha256")): entry.label for entry in files}
    found = {}
    for path in facts.ggufs:
        label = by_digest.get(model_sha256(path))
        if label is None:
            raise ResultError(f"{path}: no result of the report is about this file: give its result too")
        found[label] = path
    return found


def _front(facts: CardFacts, base: str, stated: Sequence[Mapping[str, object]]) -> tuple[str, list[str]]:
    """The YAML of the front matter, and sentences about what is unknown."""
    # It is slow to import.
    from huggingface_hub import ModelCardData

    def metadata(key: str, option: str) -> str | None:
        return _one(facts.path, key, option, (str(each[key]) if each.get(key) else None for each in stated))

    licence = facts.license or metadata("general.license", "--license")
    quantizer = facts.quantized_by or metadata("general.quantized_by", "--quantized-by")
    unknown = [] if licence else [patterns.NO_LICENCE()]
    unknown += [] if quantizer else [patterns.NO_QUANTIZER()]
    own = facts.license is None
    data = ModelCardData(
        license=licence,
        license_name=metadata("general.license.name", "--license") if own else None,
        license_link=metadata("general.license.link", "--license") if own else None,
        base_model=base,
        base_model_relation="quantized",
        quantized_by=quantizer,
        pipeline_tag=facts.pipeline_tag,
        tags=list(dict.fromkeys(("gguf", *facts.tags))),
    )
    return data.to_yaml(), unknown


def _one(path: Path, what: str, option: str, values: Iterable[str | None]) -> str | None:
    """The only value that is not None; None if there is none. Raises ResultError if there are several."""
    found = sorted({value for value in values if value})
    if len(found) > 1:
        raise ResultError(
            f"{path}: the files name different values ({', '.join(found)}) for {what}: give {option}"
        )
    return found[0] if found else None


def _source(entry: Entry) -> str | None:
    """The hub id that a file was converted from, if it names one."""
    source = _provenance(entry, "source")
    parts = source.split("/") if isinstance(source, str) else []
    return source if len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~") else None


def _provenance(entry: Entry, name: str) -> str | None:
    value = entry.run.provenance.get(name) if entry.run else None
    return None if value is None else str(value)


def _context(base: str, ggufs: Mapping[str, Path]) -> int:
    """The recommended context length: that of a known model, else edge's default, at most that of the file."""
    try:
        return find_known(base).context
    except EdgeError:
        most = [read_shape(path).context_length for path in ggufs.values()]
        return min([DEFAULT_CONTEXT, *(length for length in most if length)])


def _memory(path: Path, context: int) -> int:
    """Bytes to run a file with this context, estimated: the weights, the cache and the buffers."""
    shape = read_shape(path)
    return shape.weights + buffers(shape, context).total


def _file_name(entry: Entry) -> str:
    path = entry.run.result.get("model_path") if entry.run else None
    return masked(PurePosixPath(path.replace("\\", "/")).name if path else entry.label)


def _table(report: Report, files: Sequence[Entry], memory: Mapping[str, int], context: int) -> list[str]:
    advice = recommendations(report)
    reference = [entry for entry in (report.reference,) if entry and entry.run]
    rows = [*reference, *files]
    columns: list[tuple[str, list[str]]] = [
        ("file", [escaped(_file_name(entry)) for entry in rows]),
        ("tasks solved %", [words.tasks_solved(entry) for entry in rows]),
        ("size", [words.size(entry.n_bytes) for entry in rows]),
        ("bits per weight", [words.fixed(entry.bits_per_weight, 2) for entry in rows]),
        ("KL", [words.kl(_kl(entry)) for entry in rows]),
        ("same commands %", [words.same_commands(entry) for entry in rows]),
        ("score", [words.figure("score", entry.score) for entry in rows]),
        (f"memory at {context:,} tokens", [words.size(memory.get(entry.label)) for entry in rows]),
        ("recommendation", [escaped(advice.get(entry.label) or _of_reference(entry)) for entry in rows]),
    ]
    kept = [(name, cells) for name, cells in columns if any(cell != words.DASH for cell in cells)]
    cells = list(zip(*(cells for _, cells in kept), strict=True))
    return table([name for name, _ in kept], cells, right=range(1, len(kept) - 1))


def _of_reference(entry: Entry) -> str:
    unquantized = entry.run is not None and entry.run.unquantized
    return patterns.ADVICE_BASE() if unquantized else patterns.ADVICE_REFERENCE()


def recommendations(report: Report) -> dict[str, str]:
    """A plain recommendation for each compared file, by label. docs/sentences.md says when each is true."""
    files = _largest_first(report.quantized)
    beaten = beaten_files(report)
    good = [entry for entry in files if entry.label not in beaten]
    found = {}
    for entry in files:
        if entry.label in beaten:
            advice = patterns.ADVICE_BEATEN(file=beaten[entry.label])
        elif entry is good[0]:
            advice = patterns.ADVICE_FIRST() if len(good) > 1 else patterns.ADVICE_ONLY()
        else:
            advice = patterns.ADVICE_NEXT(file=good[good.index(entry) - 1].label)
        found[entry.label] = f"{advice} {_verdict(entry)}".rstrip()
    return found


def _verdict(entry: Entry) -> str:
    score = entry.figure("score")
    if score is None or score.verdict == "not paired":
        return ""
    if score.verdict == "worse":
        return patterns.ADVICE_LOSS(points=words.figure("score", abs(score.difference or 0)))
    if is_few(score.verdict) or score.verdict == NONE_DIFFERS:
        return patterns.ADVICE_FEW()
    return patterns.ADVICE_NO_LOSS()


def _kl(entry: Entry) -> float | None:
    return entry.measured.aggregate.get("kl_mean") if entry.measured else None


def _trials(report: Report) -> list[str]:
    """What the trials say about each file, as a list."""
    said = [f"{label}: {text}" for label, text in trial_words.sentences(report)]
    if predicted := trial_words.prediction(report):
        said.append(predicted)
    return ["## Tasks solved", "", *(f"- {escaped(text)}" for text in said), ""] if said else []


def _commands(report: Report, files: Sequence[Entry], base: str) -> list[str]:
    """The commands that convert, answer and measure again, and the SHA-256 by which the files are compared."""
    lines = [escaped(patterns.CARD_COMMANDS()), "", "```sh"]
    reference = report.reference if report.reference and report.reference.run else None
    for entry in [*([reference] if reference else []), *files]:
        lines += _commands_of(entry, reference, base)
    names = [shlex.quote(_stem(entry) + ".json") for entry in files]
    names += [shlex.quote(_stem(entry) + ".measure.json") for entry in files if entry.measured]
    tried = [entry for entry in [*([reference] if reference else []), *files] if entry.tried]
    names += [shlex.quote(f"trials/{_stem(entry)}.json") for entry in tried]
    against = shlex.quote(_stem(reference) + ".json" if reference else report.entries[0].label)
    lines += [f"edge report {' '.join(names)} --reference {against} --out report.html", "```", ""]
    digests = [
        (escaped(_file_name(entry)), f"`{digest}`")
        for entry in [*([reference] if reference else []), *files]
        if (digest := _provenance(entry, "model_sha256"))
    ]
    return [*lines, *table(("file", "SHA-256"), digests)]


def _commands_of(entry: Entry, reference: Entry | None, base: str) -> list[str]:
    assert entry.run is not None
    sampling, result = entry.run.sampling, entry.run.result
    if (entry.run.provenance.get("backend") or sampling.get("backend")) != "edge":
        return [f"# {_stem(entry)}.json: answered by {entry.backend}; edge eval does not make it"]
    file, quant = shlex.quote(_stem(entry) + ".gguf"), _provenance(entry, "quantization") or "TYPE"
    revision = _provenance(entry, "source_revision")
    pinned = f" --revision {shlex.quote(revision)}" if revision else ""
    options = [f"--replay {shlex.quote(_rows_name(entry))}"]
    if sampling.get("max_tokens"):
        options.append(f"--max-tokens {sampling['max_tokens']}")
    if sampling.get("constrained") is False:
        options.append("--unconstrained")
    if (think := sampling.get("think")) is not None:
        options.append(f"--think {think or 'off'}")
    if parallel := result.get("engine", {}).get("parallel"):
        options.append(f"--parallel {parallel}")
    options += _settings({**sampling, "kv_type": result.get("engine", {}).get("kv_type")})
    lines = [
        f"edge convert {shlex.quote(base)}{pinned} --quant {shlex.quote(quant)}{_matrix(entry)} --out {file}",
        f"edge eval --model {file} {' '.join(options)} --out {shlex.quote(_stem(entry) + '.json')}",
    ]
    if entry.measured and reference is not None:
        lines.append(
            f"edge measure --model {file} --base {shlex.quote(_stem(reference) + '.gguf')} {options[0]} "
            f"--out {shlex.quote(_stem(entry) + '.measure.json')}"
        )
    return lines + _trial_command(entry.tried, file)


def _settings(recorded: Mapping[str, object]) -> list[str]:
    """The options of the settings that are not the default."""
    return [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, default in _DEFAULTS.items()
        if (value := recorded.get(name)) not in (None, default)
    ]


def _trial_command(tried: Tried | None, file: str) -> list[str]:
    """The command that tries a file again, with the settings that its trials record."""
    if tried is None:
        return []
    result, limits = tried.result, tried.result["limits"]
    tasks = PurePosixPath(result["tasks_path"].replace("\\", "/")).name
    words_ = [] if tasks == "suite" else [shlex.quote(tasks)]
    words_ += [f"--model {file} --attempts {result['attempts']} --max-steps {limits['max_steps']}"]
    words_ += [f"--max-tokens {limits['max_tokens']}"]
    sampling = {name: value for name, value in result["sampling"].items() if name in _SAMPLING}
    words_ += _settings({**sampling, "seed": sampling.get("seed") or None})
    return [f"edge trial {' '.join(words_)} --out trials"]


def _matrix(entry: Entry) -> str:
    """The option that names the importance matrix of a file; "" without one."""
    known = entry.run.provenance.get("imatrix") if entry.run else None
    if not known:
        return ""
    name = PurePosixPath(str(known.get("matrix") or "matrix.gguf").replace("\\", "/")).name
    return f" --imatrix {shlex.quote(name)}"


def _rows_name(entry: Entry) -> str:
    path = entry.run.result.get("eval_path") if entry.run else None
    return PurePosixPath(str(path or "rows.jsonl").replace("\\", "/")).name


def _stem(entry: Entry) -> str:
    return PurePosixPath(_file_name(entry)).name.removesuffix(".gguf")


def _unmeasured(report: Report, files: Sequence[Entry], memory: Mapping[str, int]) -> list[str]:
    found = []
    tried = {label for label, _ in trial_words.counting(files)}
    if not tried:
        found.append(patterns.NOT_SOLVED(these="this file" if len(files) == 1 else "these files"))
    elif untried := [entry.label for entry in files if entry.label not in tried]:
        found.append(patterns.NOT_TRIED(files=words.listed(untried)))
    steps = sorted({(entry.steps, entry.tasks or 0) for entry in files})
    names = {_rows_name(entry) for entry in files}
    pairs = " or ".join(f"{counted(a, 'step')} of {counted(b, 'task')}" for a, b in steps)
    found.append(patterns.ONLY_ROWS(rows=words.listed(sorted(names)), pairs=pairs))
    if without := [entry.label for entry in files if _kl(entry) is None]:
        found.append(patterns.NO_KL(files=words.listed(without)))
    if matrices := [entry.label for entry in files if entry.run and entry.run.provenance.get("imatrix")]:
        found.append(patterns.MATRIX(files=words.listed(matrices)))
    if lacking := [entry.label for entry in files if entry.label not in memory]:
        found.append(patterns.NO_MEMORY(files=words.listed(lacking)))
    if memory:
        found.append(patterns.MEMORY_ESTIMATED())
    found.append(patterns.NO_SPEED())
    return found
