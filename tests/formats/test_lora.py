"""LoRA adapters merged into their base: the same bits as from peft's merge_and_unload, or one error line.

    pytest tests/formats/test_lora.py

The factors in the tests of the formula are small multiples of 1/8, so that every order of the sum gives the same bits.
The comparisons with the peft package run where it is installed (pip install peft).
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge.errors import CheckpointError
from edge.formats.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from edge.formats.lora import merge_lora
from edge.formats.tied import settle

Tensors = dict[str, torch.Tensor]
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
N_EXPERTS, WIDTH, INNER, RANK = 4, 8, 6, 2
Q, EMBEDDING, HEAD = "layers.0.self_attn.q_proj", "embed_tokens", "lm_head"
EXPERTS = "model.layers.1.mlp.experts"


def eighths(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(seed)) / 8


def base_tensors(dtype: torch.dtype) -> Tensors:
    random = torch.Generator().manual_seed(1)
    shapes = {
        "model.embed_tokens.weight": (20, WIDTH),
        "model.layers.0.self_attn.q_proj.weight": (12, WIDTH),
        "model.layers.1.self_attn.q_proj.weight": (12, WIDTH),
        f"{EXPERTS}.gate_up_proj": (N_EXPERTS, 2 * INNER, WIDTH),
        f"{EXPERTS}.down_proj": (N_EXPERTS, WIDTH, INNER),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (20, WIDTH),
    }
    return {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}


def write_base(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    (folder / "tokenizer.json").write_text('{"model": {}}')
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": 3, "bias": "none", "fan_in_fan_out": False}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    save_file(
        {f"base_model.model.{name}": value.contiguous() for name, value in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def pair(module: str, out: int = 12, columns: int = WIDTH, rank: int = RANK, seed: int = 2) -> Tensors:
    return {
        f"{module}.lora_A.weight": eighths(rank, columns, seed=seed),
        f"{module}.lora_B.weight": eighths(out, rank, seed=seed + 1),
    }


def as_torch(tensor: StoredTensor) -> torch.Tensor:
    values = torch.from_numpy(np.array(tensor.read()))
    return values.view(torch.bfloat16) if tensor.dtype == "BF16" else values


def merged(base: Path, adapter: Path) -> tuple[Checkpoint, Tensors]:
    checkpoint = merge_lora(open_checkpoint(base), adapter)
    return checkpoint, {name: as_torch(tensor) for name, tensor in checkpoint.tensors.items()}


def same(got: Tensors, wanted: Tensors) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix(dtype: str, tmp_path: Path) -> None:
    """W + scale · B·A in float32, rounded once. Every other tensor is unchanged and mapped."""
    tensors = base_tensors(DTYPES[dtype])
    name = f"model.{Q}"
    factors = pair(name)
    base, adapter = write_base(tmp_path / "base", tensors), write_adapter(tmp_path / "tuned", factors)
    checkpoint, got = merged(base, adapter)
    a, b = factors.values()
    wanted = (tensors[f"{name}.weight"].float() + (b @ a) * 1.5).to(DTYPES[dtype])
    assert not torch.equal(wanted, tensors[f"{name}.weight"])
    same(got, tensors | {f"{name}.weight": wanted})
    assert isinstance(checkpoint.tensors["model.norm.weight"].read(), np.memmap)
    assert checkpoint.adapter == "tuned"
    assert checkpoint.notes == ("the adapter tuned is merged into 1 module",)
    assert open_checkpoint(base).adapter is None


def test_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.formats.lora._BLOCK", 5 * WIDTH)
    tensors = base_tensors(torch.bfloat16)
    factors = pair(f"model.{Q}")
    _, got = merged(write_base(tmp_path / "base", tensors), write_adapter(tmp_path / "tuned", factors))
    a, b = factors.values()
    assert torch.equal(
        got[f"model.{Q}.weight"], (tensors[f"model.{Q}.weight"].float() + (b @ a) * 1.5).bfloat16()
    )


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1.5),
        ({"lora_alpha": 16}, 8.0),
        ({"lora_alpha": 0.5}, 0.25),
        ({"use_rslora": True}, 3 / math.sqrt(2)),
        ({"r": 8, "rank_pattern": {"q_proj": 2}}, 1.5),
        ({"r": 8, "rank_pattern": {"layers.1.self_attn.q_proj": 8, "layers.0.self_attn.q_proj": 2}}, 1.5),
        ({"r": 8, "rank_pattern": {"model.layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"proj": 7}}, 1.5),
        ({"alpha_pattern": {"q_proj": 4}}, 2.0),
        ({"alpha_pattern": {"proj": 4, r".*\.0\..*q_proj": 6, "q_proj": 8}}, 3.0),
        ({"alpha_pattern": {"^model.layers.0.*": 4, "q_proj": 8}}, 2.0),
        ({"alpha_pattern": {"^layers.0.*": 4}}, 1.5),
        (
            {"use_rslora": True, "alpha_pattern": {"q_proj": 4}, "init_lora_weights": "gaussian"},
            4 / math.sqrt(2),
        ),
    ],
)
def test_scale(config: dict[str, Any], scale: float, tmp_path: Path) -> None:
    tensors = base_tensors(torch.float32)
    factors = pair(f"model.{Q}")
    _, got = merged(
        write_base(tmp_path / "base", tensors), write_adapter(tmp_path / "tuned", factors, **config)
    )
    a, b = factors.values()
    assert torch.equal(got[f"model.{Q}.weight"], tensors[f"model.{Q}.weight"] + (b @ a) * scale)


@pytest.mark.parametrize("suffix", [".weight", ".default.weight", ".my-adapter.weight"])
@pytest.mark.parametrize("prefix", ["model.", "", "model.language_model.", "language_model.model."])
def test_names(prefix: str, suffix: str, tmp_path: Path) -> None:
    """Adapter and base may have different prefixes; names in older files contain the adapter's name."""
    tensors = base_tensors(torch.bfloat16)
    factors = pair(f"{prefix}{Q}")
    renamed = {name.replace(".weight", suffix): value for name, value in factors.items()}
    _, got = merged(write_base(tmp_path / "base", tensors), write_adapter(tmp_path / "tuned", renamed))
    a, b = factors.values()
    assert torch.equal(
        got[f"model.{Q}.weight"], (tensors[f"model.{Q}.weight"].float() + (b @ a) * 1.5).bfloat16()
    )


@pytest.mark.parametrize("stored", DTYPES)
def test_factors_of_each_dtype(stored: str, tmp_path: Path) -> None:
    tensors = base_tensors(torch.bfloat16)
    factors = {name: value.to(DTYPES[stored]) for name, value in pair(f"model.{Q}").items()}
    _, got = merged(write_base(tmp_path / "base", tensors), write_adapter(tmp_path / "tuned", factors))
    a, b = (value.float() for value in factors.values())
    assert torch.equal(
        got[f"model.{Q}.weight"], (tensors[f"model.{Q}.weight"].float() + (b @ a) * 1.5).bfloat16()
    )


def test_transposed_weights(tmp_path: Path) -> None:
    tensors = base_tensors(torch.float32)
    tensors[f"model.{Q}.weight"] = tensors[f"model.{Q}.weight"].T.contiguous()
    factors = pair(f"model.{Q}")
    adapter = write_adapter(tmp_path / "tuned", factors, fan_in_fan_out=True)
    _, got = merged(write_base(tmp_path / "base", tensors), adapter)
    a, b = factors.values()
    assert torch.equal(got[f"model.{Q}.weight"], tensors[f"model.{Q}.weight"] + (b @ a).T * 1.5)


def test_embeddings_and_whole_modules(tmp_path: Path) -> None:
    tensors = base_tensors(torch.bfloat16)
    a, b = eighths(RANK, 20, seed=4), eighths(WIDTH, RANK, seed=5)
    head, norm = torch.randn(20, WIDTH), torch.randn(WIDTH)
    own = {
        f"model.{EMBEDDING}.lora_embedding_A": a,
        f"model.{EMBEDDING}.lora_embedding_B": b,
        f"model.{EMBEDDING}.base_layer.weight": tensors["model.embed_tokens.weight"] * 2,
        "lm_head.weight": head,
        "model.norm.modules_to_save.default.weight": norm,
    }
    base = write_base(tmp_path / "base", tensors)
    checkpoint, got = merged(
        base, write_adapter(tmp_path / "tuned", own, modules_to_save=["lm_head", "norm"])
    )
    wanted = {
        "model.embed_tokens.weight": 2 * tensors["model.embed_tokens.weight"] + ((b @ a).T * 1.5).bfloat16(),
        "lm_head.weight": head.bfloat16(),
        "model.norm.weight": norm.bfloat16(),
    }
    same(got, tensors | wanted)
    assert checkpoint.notes == ("the adapter tuned is merged into 3 modules",)


def test_two_adapters_in_turn(tmp_path: Path) -> None:
    tensors = base_tensors(torch.float32)
    one = write_adapter(tmp_path / "one", pair(f"model.{Q}", seed=2))
    two = write_adapter(tmp_path / "two", pair(f"model.{Q}", seed=8))
    checkpoint = merge_lora(merge_lora(open_checkpoint(write_base(tmp_path / "base", tensors)), one), two)
    assert checkpoint.adapter == "one+two"
    (a, b), (c, d) = pair("", seed=2).values(), pair("", seed=8).values()
    wanted = tensors[f"model.{Q}.weight"] + (b @ a) * 1.5 + (d @ c) * 1.5
    assert torch.equal(as_torch(checkpoint.tensors[f"model.{Q}.weight"]), wanted)


# --- fused experts ---


def expert_factors() -> Tensors:
    """As peft saves them: for gate_up_proj, which it wraps first, and for down_proj, which it wraps around that."""
    rows = RANK * N_EXPERTS
    return {
        f"{EXPERTS}.base_layer.lora_A.weight": eighths(rows, WIDTH, seed=2),
        f"{EXPERTS}.base_layer.lora_B.weight": eighths(2 * INNER, rows, seed=3),
        f"{EXPERTS}.lora_A.weight": eighths(rows, INNER, seed=4),
        f"{EXPERTS}.lora_B.weight": eighths(WIDTH, rows, seed=5),
    }


def expert_changes() -> tuple[torch.Tensor, torch.Tensor]:
    """peft's own formula, from ParamWrapper.get_delta_weight."""
    changes = []
    factors = list(expert_factors().values())
    for a, b in (factors[:2], factors[2:]):
        a, b = a.reshape(N_EXPERTS, -1, a.shape[-1]), b.reshape(b.shape[0], -1, N_EXPERTS)
        changes.append(torch.einsum("o r e, e r i -> e o i", b, a) * 1.5)
    return changes[0], changes[1]


TARGETS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "target_modules": []}


def test_fused_experts(tmp_path: Path) -> None:
    tensors = base_tensors(torch.bfloat16)
    base, adapter = (
        write_base(tmp_path / "base", tensors),
        write_adapter(tmp_path / "t", expert_factors(), **TARGETS),
    )
    _, got = merged(base, adapter)
    wanted = {
        f"{EXPERTS}.{name}": tensors[f"{EXPERTS}.{name}"] + change.bfloat16()
        for name, change in zip(("gate_up_proj", "down_proj"), expert_changes(), strict=True)
    }
    same(got, tensors | wanted)


@pytest.mark.parametrize("names", [("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")])
def test_fused_experts_on_a_base_that_stores_them_one_by_one(
    names: tuple[str, str, str], tmp_path: Path
) -> None:
    fused = base_tensors(torch.bfloat16)
    tensors = {name: value for name, value in fused.items() if "experts" not in name}
    wanted = dict(tensors)
    up_change, down_change = expert_changes()
    for x in range(N_EXPERTS):
        parts = (
            (names[0], fused[f"{EXPERTS}.gate_up_proj"][x, :INNER], up_change[x, :INNER]),
            (names[1], fused[f"{EXPERTS}.gate_up_proj"][x, INNER:], up_change[x, INNER:]),
            (names[2], fused[f"{EXPERTS}.down_proj"][x], down_change[x]),
        )
        for name, value, change in parts:
            tensors[f"{EXPERTS}.{x}.{name}.weight"] = value.clone()
            wanted[f"{EXPERTS}.{x}.{name}.weight"] = value + change.bfloat16()
    base, adapter = (
        write_base(tmp_path / "base", tensors),
        write_adapter(tmp_path / "t", expert_factors(), **TARGETS),
    )
    same(merged(base, adapter)[1], wanted)


# --- what goes along ---


def test_template_and_tokenizer_beside_the_adapter(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", base_tensors(torch.float32))
    adapter = write_adapter(tmp_path / "tuned", pair(f"model.{Q}"))
    (base / "chat_template.jinja").write_text("base")
    assert merge_lora(open_checkpoint(base), adapter).chat_template == "base"
    (adapter / "chat_template.jinja").write_text("base")
    assert len(merge_lora(open_checkpoint(base), adapter).notes) == 1
    (adapter / "chat_template.jinja").write_text("tuned")
    (adapter / "tokenizer.json").write_text('{"model": {}, "added_tokens": []}')
    checkpoint = merge_lora(open_checkpoint(base), adapter)
    assert checkpoint.chat_template == "tuned"
    assert checkpoint.notes[1:] == (f"the chat template is the adapter's ({adapter}), not the base's",)
    assert (checkpoint.tokenizer_file, checkpoint.extends) == (
        adapter / "tokenizer.json",
        open_checkpoint(base),
    )
    (adapter / "tokenizer.json").write_text('{"model": {}, "version": "1.0", "padding": {}}')
    assert merge_lora(open_checkpoint(base), adapter).extends is None


# --- refusals ---

Change = Callable[[Path], object]


def setting(**changes: Any) -> Change:
    def change(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(change: Callable[[Tensors], object]) -> Change:
    def make(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return make


def z_proj(name: str) -> str:
    return name.replace("q_proj", "z_proj")


A, B = (f"base_model.model.model.{Q}.lora_{half}.weight" for half in "AB")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda a: shutil.rmtree(a), "no such folder"),
        (lambda a: (a / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda a: (a / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
        (lambda a: (a / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: is missing"),
        (lambda a: (a / "adapter_model.safetensors").rename(a / "adapter_model.bin"), "is pickled"),
        (setting(peft_type="LOHA"), "peft_type is 'LOHA'; edge merges LORA only"),
        (setting(peft_type=None), "peft_type is 'None'"),
        (setting(use_dora=True), "use_dora is set; edge does not merge DoRA"),
        (setting(lora_bias=True), "lora_bias is set"),
        (setting(bias="all"), "bias is 'all'"),
        (setting(init_lora_weights="pissa_niter_16"), "init_lora_weights 'pissa_niter_16' changes the base too"),
        (setting(layer_replication=[[0, 2]]), "layer_replication is set"),
        (setting(r=4), "layers.0.self_attn.q_proj has rank 2, but r is 4 there"),
        (setting(rank_pattern={"q_proj": 3}), "has rank 2, but r is 3 there"),
        (setting(lora_alpha="16"), "lora_alpha is '16' for"),
        (setting(lora_alpha=float("nan")), "lora_alpha is 'nan' for"),
        (setting(alpha_pattern={"(": 1}), "which is not a regular expression"),
        (setting(alpha_pattern={"(a+)+(b+)+": 1}), "at most three repeats"),
        (setting(rank_pattern=[1]), "rank_pattern is not a map of patterns"),
        (weights(lambda t: t.clear()), "has no tensors"),
        (weights(lambda t: t.pop(A)), "lora_B.weight has no lora_A beside it"),
        (weights(lambda t: t.pop(B)), "lora_A.weight has no lora_B beside it"),
        (weights(lambda t: t.update({A: eighths(RANK, 9, seed=1)})), "do not fit the base's [12, 8]"),
        (weights(lambda t: t.update({B: eighths(12, 3, seed=1)})), "do not fit the base's [12, 8]"),
        (weights(lambda t: t.update({A: torch.ones(RANK)})), "not that of a matrix"),
        (weights(lambda t: t.update({A: torch.ones(RANK, WIDTH, dtype=torch.int8)})), "is stored as I8"),
        (weights(lambda t: t.update({z_proj(A): t.pop(A), z_proj(B): t.pop(B)})), "z_proj.weight in the base"),
        (weights(lambda t: t.update({A.replace(".weight", ".x.weight"): t[A].clone()})), "two adapters in one"),
        (weights(lambda t: t.update({A.replace("lora_A", "lora_magnitude"): torch.ones(12)})), "not part of plain"),
        (weights(lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(9)})), "but the base's is [8]"),
        (weights(lambda t: t.update({"base_model.model.score.weight": torch.ones(9)})), "needs score.weight in"),
    ],
)  # fmt: skip
def test_refused(change: Change, problem: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", base_tensors(torch.float32))
    adapter = write_adapter(tmp_path / "tuned", pair(f"model.{Q}"))
    change(adapter)
    with pytest.raises(CheckpointError) as caught:
        merge_lora(open_checkpoint(base), adapter)
    assert problem in str(caught.value)
    assert str(adapter) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tied_embeddings(tmp_path: Path) -> None:
    """One stored matrix for embeddings and output; tests/conversion/test_tied.py compares with peft."""
    tensors = base_tensors(torch.float32)
    embeddings = tensors["model.embed_tokens.weight"]
    del tensors["lm_head.weight"]
    base = write_base(tmp_path / "base", tensors, tie_word_embeddings=True)
    own = pair("lm_head", out=20)
    _, got = merged(base, write_adapter(tmp_path / "tuned", own))
    a, b = own.values()
    same(got, tensors | {"model.lm_head.weight": embeddings + (b @ a) * 1.5})
    one = torch.ones(20, WIDTH)
    both = {"lm_head.weight": one, "model.embed_tokens.weight": one * 2}
    _, got = merged(base, write_adapter(tmp_path / "both", both))
    same(got, tensors | {"model.embed_tokens.weight": one * 2, "model.lm_head.weight": one})
    trained = write_adapter(
        tmp_path / "one", {"model.embed_tokens.weight": one}, modules_to_save=["embed_tokens"]
    )
    same(
        merged(base, trained)[1],
        tensors | {"model.embed_tokens.weight": one, "model.lm_head.weight": embeddings},
    )
    stored = write_adapter(tmp_path / "one", {"model.embed_tokens.weight": one}, modules_to_save=[])
    same(merged(base, stored)[1], tensors | {"model.embed_tokens.weight": one})


def factors_of(number: float) -> Tensors:
    return {
        f"model.{Q}.lora_A.weight": torch.full((RANK, WIDTH), number),
        f"model.{Q}.lora_B.weight": torch.ones(12, RANK),
    }


@pytest.mark.parametrize(
    "own",
    [
        factors_of(math.nan),
        factors_of(3e38),
        factors_of(60_000.0),
        {"model.norm.weight": torch.full((WIDTH,), math.inf)},
        {"model.norm.weight": torch.full((WIDTH,), 1e6)},
    ],
)
def test_what_is_not_finite_is_found_when_it_is_read(own: Tensors, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", base_tensors(torch.float16))
    checkpoint = merge_lora(open_checkpoint(base), write_adapter(tmp_path / "tuned", own))
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        for tensor in checkpoint.tensors.values():
            tensor.read()


def test_experts_that_fit_nowhere(tmp_path: Path) -> None:
    factors = expert_factors()
    factors[f"{EXPERTS}.lora_A.weight"] = eighths(RANK * N_EXPERTS, INNER + 1, seed=4)
    base = write_base(tmp_path / "base", base_tensors(torch.float32))
    with pytest.raises(CheckpointError, match="fit no experts of the base"):
        merge_lora(open_checkpoint(base), write_adapter(tmp_path / "tuned", factors, **TARGETS))


# --- peft itself ---


def tune(model: Any, folder: Path, **config: Any) -> Any:
    """Saves an adapter of random factors with peft. Returns the model with the adapter merged by peft."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    random = torch.Generator().manual_seed(3)
    tuned = peft.get_peft_model(model, peft.LoraConfig(lora_dropout=0.0, task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for values in tuned.parameters():
            if values.requires_grad:
                values.add_(0.05 * torch.randn(values.shape, generator=random).to(values.dtype))
    tuned.save_pretrained(folder)
    return tuned.merge_and_unload()


def compare_with_peft(base: Path, adapter: Path, model: Any) -> int:
    """Each tensor is equal to peft's, except for the last bit of a few. Returns how many the adapter changed."""
    checkpoint, got = merged(base, adapter)
    stored = load_file(base / "model.safetensors")
    theirs = model.state_dict()
    changed = 0
    for name, values in got.items():
        wanted = theirs[name].to(values.dtype)  # transformers keeps some in float32
        assert (values == wanted).float().mean() > (0.95 if values.dtype == torch.float32 else 0.999), name
        torch.testing.assert_close(values.float(), wanted.float(), rtol=2**-7, atol=1e-6)
        changed += not torch.equal(values, stored[name])
    assert checkpoint.adapter == adapter.name
    return changed


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch warns about calls of peft and transformers
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")  # peft says what it does
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peft_on_llama(dtype: str, tmp_path: Path, one_thread: None) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    import make_random
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    make_random.llama(base, dtype=getattr(torch, dtype), vocab_size=1024)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    config = {
        "r": 8,
        "lora_alpha": 12,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj", "embed_tokens"],
        "modules_to_save": ["lm_head", "norm"],
        "rank_pattern": {"down_proj": 4, "layers.0.self_attn.q_proj": 16},
        "alpha_pattern": {"v_proj": 32},
    }
    model = tune(model, tmp_path / "tuned", **config)
    # Four matrices and two norms in each layer, the embeddings, the last norm and the output.
    assert compare_with_peft(base, tmp_path / "tuned", model) == 2 * (4 + 2) + 3


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch warns about calls of peft and transformers
def test_peft_on_fused_experts(
    tmp_path: Path, random_lfm2moe_fused_folder: Path, random_lfm2moe_folder: Path
) -> None:
    """The LFM2-MoE architecture: experts are fused in memory, and fused or separate on disk."""
    pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(random_lfm2moe_fused_folder, dtype=torch.bfloat16)
    config = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "in_proj", "w1"],
        "target_parameters": ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"],
    }
    model = tune(model, tmp_path / "tuned", **config)
    changed = compare_with_peft(random_lfm2moe_fused_folder, tmp_path / "tuned", model)
    assert changed == 4 * 2 + 2 + 4 + 2  # experts; attention; convolutions; dense layers
    _, fused = merged(random_lfm2moe_fused_folder, tmp_path / "tuned")
    _, ones = merged(random_lfm2moe_folder, tmp_path / "tuned")
    for name, values in ones.items():
        owner, _, rest = name.partition(".experts.")
        if rest:
            x, part, _ = rest.split(".")
            whole = fused[f"{owner}.experts.{'down_proj' if part == 'w2' else 'gate_up_proj'}"][int(x)]
            half = len(whole) // 2
            wanted = whole if part == "w2" else whole[:half] if part == "w1" else whole[half:]
        else:
            wanted = fused[name]
        assert torch.equal(values, wanted), name


def test_a_copy_of_tied_embeddings_in_the_base(tmp_path: Path) -> None:
    """With `ensure_weight_tying`, a base that stores both matrices of a tied pair stays tied."""
    tensors = base_tensors(torch.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    ones = {"model.embed_tokens.weight": torch.ones(20, WIDTH)}
    adapter = write_adapter(tmp_path / "tuned", ones, ensure_weight_tying=True)
    base = open_checkpoint(write_base(tmp_path / "base", tensors))
    for tied in (False, True):
        checkpoint = merge_lora(settle(base, tied), adapter)
        assert ("lm_head.weight" in checkpoint.tensors) is not tied
        assert np.array_equal(checkpoint.tensors["model.embed_tokens.weight"].read(), np.ones((20, WIDTH)))
        assert checkpoint.tied is tied
