"""`edge inspect`: show what a GGUF contains, where it comes from and what is wrong with it.

`inspect` returns an Inspection, or an AdapterInspection; `to_text` and `to_json` show it. The texts in a file are
untrusted: `to_text` prints each on one line, cut and without control characters.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gguf import TokenType

from edge.conversion.template import Findings, examine, stored_tokens
from edge.errors import ModelFileError
from edge.formats.adapter import AdapterFile, is_adapter, read_adapter
from edge.formats.facts import TypeShare, calibration, origin, recipe, type_shares
from edge.formats.gguf import (
    RECIPE_COSTS,
    ModelFile,
    TensorInfo,
    model_sha256,
    part_files,
    read_array,
    read_metadata,
    read_model_file,
    read_padding,
    read_tensors,
    sha256,
)
from edge.prompt import prompt_source, render_prompt, task_messages
from edge.system.tables import display_width
from edge.system.text import counted, masked

if TYPE_CHECKING:
    from edge.conversion.verify import Comparison

_SHOWN = 100  # maximum width of a text from the file, in columns
_LINES = 100  # maximum number of lines of a recipe


@dataclass(frozen=True)
class Tokens:
    """The tokenizer. `kinds`: the number of tokens of each kind. `special`: id and text of each named token."""

    model: str
    pre: str
    count: int
    merges: int
    kinds: dict[str, int]
    special: dict[str, tuple[int, str]]
    add_bos: bool
    add_eos: bool


@dataclass(frozen=True)
class Template:
    """The chat template. `status`: as in results. `reason`: why edge does not use the template, otherwise empty.

    `findings`: what can do harm in it, and what it does not take.
    """

    characters: int
    first_line: str
    status: str
    reason: str
    findings: Findings


@dataclass(frozen=True)
class Inspection:
    """What `edge inspect` shows of a file. Sizes are in bytes.

    `problems`: what is wrong with the data, one line each; always empty unless `verified`. `comparison`: the result of
    the comparison with the source, if one was given. `recipe`: the lines PATTERN=TYPE that it was made with.
    `recipe_costs`: what was measured to choose them, as JSON text.
    """

    model: ModelFile
    types: tuple[TypeShare, ...]
    tensors: tuple[TensorInfo, ...]
    header_bytes: int
    padding_bytes: int
    tokens: Tokens
    template: Template | None
    origin: dict[str, str]
    calibration: dict[str, str]
    recipe: tuple[str, ...]
    recipe_costs: str
    sha256: str
    verified: bool
    problems: tuple[str, ...]
    comparison: "Comparison | None"

    @property
    def ok(self) -> bool:
        """Whether there is no problem, and the comparison, if any, found no difference and skipped no tensor."""
        compared = self.comparison
        return not self.problems and not (compared and (compared.different or compared.skipped))

    def to_json(self) -> str:
        """The inspection as one JSON object."""
        data = asdict(self)
        data["model"]["path"] = str(self.model.path)
        return json.dumps({"ok": self.ok, **data}, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self) -> str:
        """The inspection as lines for a person."""
        model = self.model
        lines = [
            str(model.path),
            f"  model        {_clean(model.name)}: {_clean(model.architecture)}, {model.n_params:,} parameters "
            f"({_clean(model.size_label)}), context {model.context_length:,}",
            f"  file         {model.file_type}, {model.n_bytes:,} bytes, {model.bits_per_weight:.3f} bits per weight"
            + (f", in {model.parts} parts" if model.parts > 1 else ""),
            f"  SHA-256      {self.sha256}",
            *_pairs("origin", self.origin),
            *_type_lines(self.types),
            *_recipe_lines(self.recipe, _group_costs(self.recipe_costs)),
            f"  layout       {self.header_bytes:,} bytes of header, {counted(len(self.tensors), 'tensor')}, "
            f"{self.padding_bytes:,} bytes of padding",
            *_token_lines(self.tokens),
            *_template_lines(self.template),
            *(
                _pairs("calibration", self.calibration)
                or ["  calibration  none: made without an importance matrix"]
            ),
        ]
        lines += _data_lines(self.verified, self.problems)
        if self.comparison is not None:
            lines += _comparison_lines(self.comparison)
        return "\n".join(lines)


@dataclass(frozen=True)
class AdapterInspection:
    """What `edge inspect` shows of a LoRA adapter. `problems`: as in Inspection."""

    adapter: AdapterFile
    types: tuple[TypeShare, ...]
    origin: dict[str, str]
    sha256: str
    verified: bool
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def to_json(self) -> str:
        """The same as a JSON object."""
        adapter = self.adapter
        value = {
            "ok": self.ok,
            "adapter": {
                "path": str(adapter.path),
                "name": adapter.name,
                "architecture": adapter.architecture,
                "alpha": adapter.alpha,
                "ranks": adapter.ranks,
                "weights": {pair.name: pair.rank for pair in adapter.pairs},
                "ignored": adapter.ignored,
                "base": adapter.base,
                "n_bytes": adapter.n_bytes,
            },
            "types": [asdict(share) for share in self.types],
            "origin": self.origin,
            "sha256": self.sha256,
            "verified": self.verified,
            "problems": self.problems,
        }
        return json.dumps(value, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self) -> str:
        """The same as lines of text."""
        adapter = self.adapter
        kinds = Counter(re.sub(r"^blk\.[0-9]+\.", "", pair.name) for pair in adapter.pairs)
        lines = [
            str(adapter.path),
            f"  adapter      {_clean(adapter.name)}: LoRA for {_clean(adapter.architecture)}, {len(adapter.pairs):,} "
            f"weights, rank {', '.join(map(str, adapter.ranks))}, alpha {adapter.alpha:g}",
            f"  file         {adapter.n_bytes:,} bytes",
            f"  SHA-256      {self.sha256}",
            f"  base         {', '.join(map(_clean, adapter.base)) or 'not recorded'}",
            *_pairs("origin", self.origin),
            *_type_lines(self.types),
            *_pairs("weights", {_clean(name): f"({count:,})" for name, count in kinds.items()}),
        ]
        if adapter.ignored:
            lines.append(f"  not used     {len(adapter.ignored):,} norms: llama.cpp does not apply them")
        return "\n".join([*lines, *_data_lines(self.verified, self.problems)])


def inspect(
    path: str | Path,
    *,
    verify: bool = False,
    source: str | Path | None = None,
    revision: str | None = None,
    offline: bool = False,
    imatrix: Path | None = None,
    lora: Path | None = None,
    threads: int | None = None,
) -> Inspection | AdapterInspection:
    """Inspect a GGUF: a model or a LoRA adapter.

    `verify`: read all of its data and check it. `source`: its checkpoint, a folder or hub id; edge converts every
    tensor again and compares. Then `imatrix` and `lora` must be those that the file was made with. `revision`: branch,
    tag or commit of a hub id. `offline`: use only the hub's cache.

    Raises ModelFileError if the file cannot be read, CheckpointError or ConversionError if the source cannot.
    """
    path = Path(path)
    if is_adapter(path):
        return _inspect_adapter(path, verify=verify, compared=source is not None)
    model = read_model_file(path)
    files = part_files(path)
    metadata = read_metadata(path)
    tensors = read_tensors(path)
    problems: list[str] = []
    comparison = None
    if verify:
        from edge.conversion.verify import check_data

        problems = check_data(path)
    if source is not None:
        from edge.conversion.verify import compare_with_source

        comparison = compare_with_source(
            path, source, revision=revision, offline=offline, imatrix=imatrix, lora=lora, threads=threads
        )
    return Inspection(
        model=model,
        types=type_shares(tensors),
        tensors=tuple(tensors),
        header_bytes=_header_bytes(files, tensors),
        padding_bytes=sum(end - begin for file in files for begin, end in read_padding(file)),
        tokens=_tokens(path, metadata),
        template=_template(path, model),
        origin=origin(metadata),
        calibration=calibration(metadata),
        recipe=tuple(recipe(metadata)),
        recipe_costs=str(metadata.get(RECIPE_COSTS, "")),
        sha256=model_sha256(path),
        verified=verify,
        problems=tuple(problems),
        comparison=comparison,
    )


def _header_bytes(files: Sequence[Path], tensors: Sequence[TensorInfo]) -> int:
    """The bytes before the data, of all files of a model. A part without tensors is all header."""
    begins: dict[int, int] = {}
    for tensor in tensors:
        begins[tensor.part] = min(tensor.offset, begins.get(tensor.part, tensor.offset))
    return sum(begins.get(number, file.stat().st_size) for number, file in enumerate(files, 1))


def _inspect_adapter(path: Path, *, verify: bool, compared: bool) -> AdapterInspection:
    if compared:
        raise ModelFileError(
            f"{path}: is an adapter; edge compares only models with their source: leave out --source"
        )
    problems: list[str] = []
    if verify:
        from edge.conversion.verify import check_data

        problems = check_data(path)
    found = origin(read_metadata(path))
    found.pop("base model", None)  # it has its own line
    return AdapterInspection(
        adapter=read_adapter(path),
        types=type_shares(read_tensors(path)),
        origin=found,
        sha256=sha256(path),
        verified=verify,
        problems=tuple(problems),
    )


def _tokens(path: Path, metadata: Mapping[str, object]) -> Tokens:
    texts = read_array(path, "tokenizer.ggml.tokens")
    kinds = Counter(read_array(path, "tokenizer.ggml.token_type"))
    names = {int(kind): kind.name.lower() for kind in TokenType}
    special = {}
    for key, number in metadata.items():
        name = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
        if key == f"tokenizer.ggml.{name}_token_id" and type(number) is int and 0 <= number < len(texts):
            special[name] = (number, texts[number].decode("utf-8", "replace"))
    return Tokens(
        model=str(metadata.get("tokenizer.ggml.model", "")),
        pre=str(metadata.get("tokenizer.ggml.pre", "")),
        count=len(texts),
        merges=len(read_array(path, "tokenizer.ggml.merges")),
        kinds={names.get(kind, str(kind)): count for kind, count in sorted(kinds.items())},
        special=special,
        add_bos=metadata.get("tokenizer.ggml.add_bos_token") is True,
        add_eos=metadata.get("tokenizer.ggml.add_eos_token") is True,
    )


def _template(path: Path, model: ModelFile) -> Template | None:
    """The template, tried on the messages that `edge run` sends."""
    source = prompt_source(path)
    if source.template is None:
        return None
    rendered = render_prompt(task_messages("ls", "$"), source)
    first = next((line for line in source.template.splitlines() if line.strip()), "")
    texts, kinds = (read_array(path, f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    findings = examine(source.template, stored_tokens(source, texts, kinds, model.end_ids))
    return Template(len(source.template), first, rendered.status, rendered.reason, findings)


# --- the text ---


def _clean(text: str, width: int = _SHOWN) -> str:
    """A text as one line of at most `width` columns, without control characters."""
    shown = masked(text[: width + 1])
    while display_width(shown) > width:
        shown = shown[:-2] + "…"
    return shown


def _pairs(title: str, found: dict[str, str]) -> list[str]:
    return [
        f"  {title if i == 0 else '':12} {name} {_clean(value)}"
        for i, (name, value) in enumerate(found.items())
    ]


def _data_lines(verified: bool, problems: Sequence[str]) -> list[str]:
    lines = []
    if verified:
        good = "all data read: no NaN or Inf, no stray bytes"
        lines.append(f"  data         {counted(len(problems), 'problem') if problems else good}")
    return lines + [f"  PROBLEM      {_clean(problem)}" for problem in problems]


def _type_lines(types: tuple[TypeShare, ...]) -> list[str]:
    total = max(sum(share.n_bytes for share in types), 1)
    rows = [("type", "tensors", "parameters", "bytes", "share", "bits")]
    for share in types:
        bits = 8 * share.n_bytes / max(share.parameters, 1)
        numbers = (f"{share.tensors:,}", f"{share.parameters:,}", f"{share.n_bytes:,}")
        rows.append((share.type, *numbers, f"{100 * share.n_bytes / total:.1f} %", f"{bits:.3f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        f"  {'types' if i == 0 else '':12} {row[0].ljust(widths[0])}  "
        + "  ".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for i, row in enumerate(rows)
    ]


def _recipe_lines(lines: Sequence[str], costs: Sequence[str]) -> list[str]:
    """The lines, each with its measured cost if there is one for each."""
    if len(costs) == len(lines):
        lines = [f"{line}  {cost}" for line, cost in zip(lines, costs, strict=True)]
    shown = [_clean(line) for line in lines[:_LINES]]
    more = len(lines) - len(shown)
    shown += [f"and {counted(more, 'line')} more; --json has all"] if more else []
    return [f"  {'recipe' if i == 0 else '':12} {line}" for i, line in enumerate(shown)]


def _group_costs(text: str) -> list[str]:
    """What `--quant auto` says of each line of its recipe: the group, and what its type costs alone."""
    try:
        groups = json.loads(text)["groups"]
        return [f"{name}: KL {float(cost):.2g}" for name, (_, cost) in groups.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # another program wrote it
        return []


def _token_lines(tokens: Tokens) -> list[str]:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in tokens.kinds.items())
    special = ", ".join(
        f"{name} {number} {_clean(text, 30)}" for name, (number, text) in tokens.special.items()
    )
    adds = [name for name, adds in (("BOS", tokens.add_bos), ("EOS", tokens.add_eos)) if adds]
    return [
        f"  tokenizer    {_clean(tokens.model, 30)}, pre-tokenizer {_clean(tokens.pre, 30) or '(none)'}, "
        f"{counted(tokens.count, 'token')} ({kinds}), {counted(tokens.merges, 'merge')}",
        f"               {special or 'no special tokens'}; adds {' and '.join(adds) or 'neither BOS nor EOS'}",
    ]


def _template_lines(template: Template | None) -> list[str]:
    if template is None:
        return ["  template     none; prompts use a fallback"]
    made = (
        "edge renders it"
        if template.status == "chat_template"
        else f"NOT USED, prompts use {template.status}"
    )
    why = f": {_clean(template.reason)}" if template.reason else ""
    return [
        f"  template     {template.characters:,} characters; {made}{why}",
        f"               {_clean(template.first_line)}",
        *([f"               {_clean(template.findings.note)}"] if template.findings.note else []),
        *(f"  WARNING      {_clean(warning, 300)}" for warning in template.findings.warnings),
    ]


def _comparison_lines(comparison: "Comparison") -> list[str]:
    at = f" at {comparison.revision}" if comparison.revision else ""
    equal = f"{counted(comparison.equal, 'tensor')} converted again with the same bits"
    lines = [f"  source       {_clean(comparison.source)}{at}: {equal}"]
    if comparison.skipped:
        why = "made with an importance matrix; give it with --imatrix"
        lines.append(f"               {len(comparison.skipped):,} not compared: {why}")
    lines += [f"  DIFFERS      {_clean(d.name, 60)}: {_clean(d.problem)}" for d in comparison.different]
    return lines
