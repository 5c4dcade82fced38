"""`edge convert ADAPTER --base SOURCE`: a LoRA adapter that peft saved becomes a separate GGUF.

The tensors and the `adapter.*` metadata are those of llama.cpp's convert_lora_to_gguf.py. edge finds the weights that
the adapter changes as it does for a merge (edge/formats/lora.py), and moves the rows of B, or the columns of A, as the
conversion of the base moves those of the weight.

llama.cpp computes scale · alpha / rank · B·A with one alpha for the whole file. If the weights of an adapter have
different ones (alpha_pattern), B contains the factor; llama.cpp's converter ignores alpha_pattern and use_rslora.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edge.conversion.families import make_plan, settled
from edge.conversion.header import add_entries
from edge.conversion.output import Replaced, header_run, output_place, sources
from edge.conversion.plan import Array, Plan, TensorPlan, Value
from edge.conversion.tokenizer import make_vocabulary, tokenizer_changes
from edge.errors import ConversionError
from edge.formats.adapter import ALPHA, FLOAT_TYPES, A, B, is_applied, read_adapter
from edge.formats.checkpoint import Checkpoint, StoredTensor, checkpoint_name, open_checkpoint, read_json
from edge.formats.checksum import KEY, blank, seal
from edge.formats.floats import Floats, narrow, widen
from edge.formats.gguf import remember, sha256
from edge.formats.hub import HUB_ID, NEWEST, HubOptions
from edge.formats.lora import MergedTensor, ReplacedTensor, check_adapter, merge_lora
from edge.formats.model_card import CardFacts, read_card
from edge.formats.own_files import mark_written
from edge.llama import ggml
from edge.system.files import whole_file
from edge.system.outputs import check_output
from edge.system.text import did_you_mean
from edge.version import __version__

DEFAULT_ADAPTER_QUANT = "F32"
_MERGE = "merge it with `edge convert BASE --lora FOLDER`"


@dataclass(frozen=True)
class ConvertedAdapter:
    """A finished conversion. `quant`: the type of its tensors; `weights`: how many weights of the base it changes."""

    path: Path
    quant: str
    n_bytes: int
    weights: int
    ranks: tuple[int, ...]
    alpha: float
    seconds: float
    sha256: str
    warnings: tuple[str, ...]
    replaced: bool = False
    """Whether a file was there before."""


@dataclass(frozen=True)
class _Factors:
    """A and B of one weight in float32, of shape ([X,] rank, columns) and ([X,] rows, rank). `alpha`: scale · rank."""

    name: str
    a: Floats
    b: Floats
    alpha: float


def convert_adapter(
    folder: str | Path,
    base: str | Path,
    *,
    quant: str = DEFAULT_ADAPTER_QUANT,
    out: str | Path | None = None,
    hub: HubOptions = NEWEST,
    force: bool = False,
) -> ConvertedAdapter:
    """Convert the folder of a LoRA adapter to a GGUF for `--lora`; `base` is the checkpoint that it changes.

    `quant`: f32, f16, bf16 or q8_0, in any case. `out`: as for `edge.convert.convert`, by default
    <name>-lora-<quant>.gguf in the user's model store. `hub`: for a `base` on the hub. `force`: replace a file of
    another conversion.
    Raises CheckpointError or ConversionError if the input or the output is unusable; then `out` is unchanged.
    """
    begin = time.monotonic()
    folder, kind = Path(folder), checked_type(quant)
    check_adapter(folder)
    checkpoint = settled(open_checkpoint(base, revision=hub.revision, offline=hub.offline))
    rows = make_plan(checkpoint).n_vocab
    merged = merge_lora(checkpoint, folder)
    plan = make_plan(merged)
    if plan.n_vocab != rows:
        raise ConversionError(
            f"{folder}: has a vocabulary of {plan.n_vocab:,} rows, and the base has {rows:,}: tokens were added or "
            f"removed; a GGUF adapter cannot change the number of rows: {_MERGE}"
        )
    place_name = f"{checkpoint_name(folder)}-lora-{kind.lower()}.gguf"
    path, place = output_place(out, place_name)
    files = [tensor.file for tensor in checkpoint.tensors.values()]
    check_output(path, [folder, checkpoint.folder, *files], error=ConversionError, streams=False)
    replaced = Replaced.at(path, force)
    made_from = sources(checkpoint=checkpoint.hub_id or checkpoint.folder, lora=folder)
    replaced.check_sources(made_from)
    replaced.check({"architecture": plan.architecture, "general.type": "adapter"})
    card = read_card(folder)
    warnings = [*card.notes, *_warnings(folder, checkpoint, merged, plan)]
    factors = _factors(folder, checkpoint, plan, bool(checkpoint.tied))
    alpha = _common_alpha(folder, factors)
    try:
        with whole_file(place) as (temporary, descriptor):
            _write(temporary, _head(folder, checkpoint, plan, alpha, card), _tensors(factors, alpha, kind))
            replaced.check(header_run(temporary))
            seal(temporary, descriptor)
            written, digest = read_adapter(temporary), sha256(temporary)
        remember(place, "made_from", made_from)
        remember(place, "sha256", digest)
        remember(place, "crc32", "right")
        mark_written(place, digest)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be written: {error.strerror or error}") from None
    return ConvertedAdapter(
        path=path,
        quant=kind,
        n_bytes=written.n_bytes,
        weights=len(written.pairs),
        ranks=written.ranks,
        alpha=written.alpha,
        seconds=time.monotonic() - begin,
        sha256=digest,
        warnings=tuple(warnings),
        replaced=replaced.there,
    )


def checked_type(quant: str) -> str:
    """The name of a type that the tensors of an adapter may have. Raises ConversionError for another one."""
    if quant.upper() not in FLOAT_TYPES:
        meant = did_you_mean(quant, FLOAT_TYPES, parts=False)
        raise ConversionError(
            f"{quant} is not a type for an adapter; {meant and meant + ' '}use one of {', '.join(FLOAT_TYPES)}",
            option="--quant",
        )
    return quant.upper()


def _warnings(folder: Path, checkpoint: Checkpoint, merged: Checkpoint, plan: Plan) -> list[str]:
    used = {part.name for tensor in plan.tensors for part in tensor.parts}
    left_out = [
        name for name, one in merged.tensors.items() if isinstance(one, MergedTensor) and name not in used
    ]
    warnings = []
    if left_out:
        warnings.append(
            f"{len(left_out)} changed weights are not part of the text model ({left_out[0]}): left out"
        )
    changes = tokenizer_changes(merged, make_vocabulary(merged, plan.n_vocab)) if merged.extends else []
    if changes:
        warnings.append(
            f"{folder}: has another tokenizer than the base ({', '.join(changes)}); a GGUF adapter has none, so "
            f"prompts use the base's: {_MERGE}"
        )
    if merged.chat_template != checkpoint.chat_template:
        warnings.append(
            f"{folder}: has another chat template than the base; a GGUF adapter has none, so prompts use the base's"
        )
    recorded = _recorded_base(folder)
    if recorded is not None and recorded.split("/")[-1].lower() != checkpoint.name.lower():
        warnings.append(
            f"{folder}: was trained on {recorded}, says adapter_config.json; --base is {checkpoint.name}"
        )
    return warnings


def _recorded_base(folder: Path) -> str | None:
    """The hub id of the base in adapter_config.json; None without one. A local path says nothing here."""
    name = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    return name if isinstance(name, str) and HUB_ID.fullmatch(name) else None


# --- the factors ---


def _factors(folder: Path, checkpoint: Checkpoint, plan: Plan, tied: bool) -> list[_Factors]:
    """The factors of every weight that the adapter changes, moved as the weight is. Raises ConversionError.

    `tied`: the base has one matrix as embeddings and output.
    """
    if tied and any(tensor.name == "output.weight" for tensor in plan.tensors):
        raise ConversionError(_one_matrix(folder))
    found = []
    for tensor in plan.tensors:
        for part in tensor.parts:
            _check_whole(folder, checkpoint, part)
        if not any(isinstance(part, MergedTensor) for part in tensor.parts):
            continue
        if not is_applied(tensor.name):
            raise ConversionError(
                f"{folder}: changes {tensor.name}, and llama.cpp does not apply adapters to it; {_MERGE}"
            )
        if tensor.name == "token_embd.weight" and tied:
            raise ConversionError(_one_matrix(folder))
        found.append(_moved(tensor, _stacked(tensor)))
    if not found:
        raise ConversionError(f"{folder}: changes no weight of the text model")
    return found


def _one_matrix(folder: Path) -> str:
    return (
        f"{folder}: changes the embeddings or the output, which are one matrix in the base; llama.cpp cannot run that: "
        f"{_MERGE}"
    )


def _check_whole(folder: Path, checkpoint: Checkpoint, part: StoredTensor) -> None:
    """Raises ConversionError for a whole tensor in the adapter, unless it is a copy of the base's."""
    whole = part.base if isinstance(part, MergedTensor) else part
    if isinstance(whole, ReplacedTensor) and not np.array_equal(
        whole.read(), checkpoint.tensors[whole.name].read()
    ):
        raise ConversionError(
            f"{folder}: replaces all of {whole.name} (modules_to_save); a GGUF adapter cannot do that: {_MERGE}"
        )


def _stacked(tensor: TensorPlan) -> _Factors:
    """The factors of all matrices of a weight: one, or one for each expert; zeros for an expert without a change."""
    matrices: list[tuple[Floats, Floats, float] | None] = []
    for part in tensor.parts:
        count = int(np.prod(part.shape[:-2]))
        if isinstance(part, MergedTensor):
            matrices += [(*part.factors(i), part.scale) for i in range(count)]
        else:
            matrices += [None] * count
    given = [one for one in matrices if one is not None]
    rank = max(one[1].shape[0] for one in given)
    scale = next((one[2] for one in given if one[2]), 0.0)
    rows, columns = tensor.parts[0].shape[-2:]
    a = np.zeros((len(matrices), rank, columns), np.float32)
    b = np.zeros((len(matrices), rows, rank), np.float32)
    for i, one in enumerate(matrices):
        if one is not None:
            left, right, own = one
            a[i, : right.shape[0]] = right
            b[i, :, : left.shape[1]] = left if own == scale else left * np.float32(own / scale)
    if len(tensor.shape) == 2:
        a, b = a[0], b[0]
    return _Factors(tensor.name, a, b, float(np.float32(scale * rank)))


def _moved(tensor: TensorPlan, factors: _Factors) -> _Factors:
    """The factors of the weight as the GGUF of the base has it."""
    a, b = factors.a, factors.b
    if tensor.columns:
        a = _changed(tensor, a)
    elif len(tensor.parts) == 1:
        b = _changed(tensor, b)
    else:  # stacked experts change one by one
        b = np.stack([_changed(tensor, one) for one in b])
    if (
        tensor.name == "token_embd.weight"
    ):  # A has a row for each token, B one for each number of an embedding
        a, b = b, np.ascontiguousarray(a.T)
    return _Factors(tensor.name, a, b, factors.alpha)


def _changed(tensor: TensorPlan, values: Floats) -> Floats:
    if tensor.wide:
        raise ConversionError(
            f"{tensor.name} is computed from the checkpoint's; an adapter cannot change it: {_MERGE}"
        )
    return np.ascontiguousarray(tensor.change(values))


def _common_alpha(folder: Path, factors: Sequence[_Factors]) -> float:
    """The alpha of the file: that of most weights. Raises ConversionError if the adapter changes nothing."""
    alphas = [one.alpha for one in factors if one.alpha]
    if not alphas:  # llama.cpp reads 0 as "no alpha", which is a factor of 1
        raise ConversionError(f"{folder}: lora_alpha is 0, so the adapter changes nothing")
    return max(dict.fromkeys(alphas), key=alphas.count)


def _tensors(factors: Sequence[_Factors], alpha: float, kind: str) -> list[tuple[str, Array, str]]:
    """Each tensor of the file: its name, its data and its type."""
    tensors = []
    for one in factors:
        b = one.b if one.alpha == alpha else one.b * np.float32(one.alpha / alpha)
        for suffix, values in ((A, one.a), (B, b)):
            name = one.name + suffix
            # As in llama.cpp's converter, for rows that do not divide into blocks.
            own = "F16" if kind == "Q8_0" and values.shape[-1] % 32 else kind
            tensors.append((name, _stored(name, values, own), own))
    return tensors


def _stored(name: str, values: Floats, kind: str) -> Array:
    if not np.isfinite(values).all():
        raise ConversionError(f"{name} holds NaN or Inf; save the adapter again")
    if kind == "Q8_0":
        rows = ggml.quantize(ggml.types()["q8_0"], np.ascontiguousarray(values.reshape(-1, values.shape[-1])))
        return rows.reshape(*values.shape[:-1], -1)
    stored = np.ascontiguousarray(narrow(values, kind))
    if not np.isfinite(widen(stored, kind)).all():
        raise ConversionError(f"{name} exceeds the range of {kind}; convert to F32 instead")
    return stored.view(np.uint8) if kind == "BF16" else stored


# --- the file ---


def _head(
    folder: Path, checkpoint: Checkpoint, plan: Plan, alpha: float, card: CardFacts
) -> list[tuple[str, Value]]:
    """The metadata. `float` becomes FLOAT32, `int` UINT32. Of its card all but the base, which is known better."""
    entries: list[tuple[str, Value]] = [
        ("general.architecture", plan.architecture),
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
        ("general.name", checkpoint_name(folder)),
        *((key, value) for key, value in card.entries if not key.startswith("general.base_model.")),
        ("general.base_model.count", 1),
        ("general.base_model.0.name", checkpoint.name),
    ]
    hub_id = checkpoint.hub_id or _recorded_base(folder)
    if hub_id is not None and hub_id.split("/")[-1].lower() == checkpoint.name.lower():
        entries.append(("general.base_model.0.repo_url", f"https://huggingface.co/{hub_id}"))
    return [
        *entries,
        (ALPHA, float(alpha)),
        ("general.quantization_version", gguf.GGML_QUANT_VERSION),
        ("edge.version", __version__),
        ("edge.lora.sha256", sha256(folder / "adapter_model.safetensors")),
    ]


def _write(path: Path, head: Sequence[tuple[str, Value]], tensors: Sequence[tuple[str, Array, str]]) -> None:
    writer = gguf.GGUFWriter(path, str(dict(head)["general.architecture"]))  # which writes it itself
    try:
        add_entries(writer, head[1:])
        writer.add_string(KEY, blank(len(tensors)))
        for name, data, kind in tensors:
            number: Any = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, data, raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
