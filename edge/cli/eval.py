"""`edge eval`: replay recorded steps with edge, vLLM or a server."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edge.cli.common import Interrupted, Threads, note, progress_line
from edge.cli.options import (
    Batch,
    FlashAttention,
    GpuLayers,
    KvType,
    MaxTokens,
    MinP,
    Mmap,
    Penalty,
    Seed,
    Style,
    Temperature,
    TextShare,
    Think,
    TopK,
    TopP,
    think_tokens,
)
from edge.cli.results import print_scores

if TYPE_CHECKING:
    from edge.answer.answering import Answering
    from edge.llama.loading import Loading
    from edge.replay.stored_result import Result

# The options that only some backends have.
_ONLY = {
    "edge": (
        "unconstrained think text_share style parallel gpu_layers threads batch kv_type flash_attention mmap".split()
    ),
    "vllm": ["tp", "dtype", "structured"],
    "openai": ["base_url", "served_model", "concurrency", "timeout", "structured"],
}


def evaluate(
    context: typer.Context,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", "-r", help="Replay rows (JSON Lines). Default: the embedded set."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The result JSON to write.")] = Path("result.json"),
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="A GGUF. Default: the newest in models/, else the embedded model. With vllm a Hugging Face folder; "
            "with openai a GGUF or folder that writes the prompts, else the server does.",
        ),
    ] = None,
    backend: Annotated[
        Literal["edge", "vllm", "openai"],
        typer.Option(
            metavar="edge|vllm|openai",
            help="Who answers: edge itself, vLLM in this process, or a server that speaks OpenAI's API.",
        ),
    ] = "edge",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    rows_of: Annotated[
        Path | None, typer.Option("--rows-of", help="Only the steps that this result JSON holds.")
    ] = None,
    max_tokens: MaxTokens = 1024,
    unconstrained: Annotated[
        bool, typer.Option("--unconstrained", help="Without the grammar, as vLLM runs.")
    ] = False,
    structured: Annotated[
        bool, typer.Option("--structured", help="vllm, openai: keep to the action's JSON schema.")
    ] = False,
    skip_too_long: Annotated[
        bool, typer.Option("--skip-too-long", help="Leave out rows that do not fit into the context.")
    ] = False,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    think: Think = None,
    text_share: TextShare = 0.6,
    style: Style = "auto",
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Answers written at once. Default: 8 on CPUs, 16 on a GPU, less where memory is short. 1 is exact: "
            "byte for byte those of an empty cache.",
        ),
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of a row, and of the cache. Default: what the model has."),
    ] = None,
    gpu_layers: GpuLayers = None,
    threads: Threads = None,
    batch: Batch = None,
    kv_type: KvType = "f16",
    flash_attention: FlashAttention = None,
    mmap: Mmap = True,
    tp: Annotated[int, typer.Option(min=1, help="vllm: GPUs that share the model.")] = 1,
    dtype: Annotated[str, typer.Option(help="vllm: what it computes in.")] = "bfloat16",
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            help="openai: the server, such as http://localhost:8000/v1; its key is read from OPENAI_API_KEY.",
        ),
    ] = None,
    served_model: Annotated[
        str | None,
        typer.Option("--served-model", help="openai: the model's name there. Default: the only one."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="openai: requests at once.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="openai: seconds for an answer.")] = 600.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no placement and no progress.")] = False,
) -> None:
    """Replay recorded steps with a model and score its answers. Interrupted, it goes on when started again."""
    _check_options(context, backend)
    if backend == "openai" and base_url is None:
        raise typer.BadParameter("--backend openai needs the server's URL", param_hint="--base-url")
    if backend == "vllm" and model is None:
        raise typer.BadParameter("--backend vllm needs a Hugging Face folder", param_hint="--model")
    thought = think_tokens(think)

    from edge.answer.answering import Answering
    from edge.answer.sampling import Sampling
    from edge.llama.loading import Loading
    from edge.system.paths import embedded_rows

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    constrained = structured if backend != "edge" else not unconstrained
    answering = Answering(max_tokens, sampling, thought, text_share, style, constrained)
    rows, say = replay or embedded_rows(), None if quiet else progress_line
    asked = _Asked(rows, out, limit, rows_of, skip_too_long, answering, ctx, say)
    loading = Loading(gpu_layers, threads, ctx, parallel, batch, kv_type, flash_attention, mmap)
    try:
        if backend == "vllm":
            result = _by_vllm(model, asked, dtype, tp)
        elif backend == "openai":
            result = _by_server(base_url or "", model, asked, served_model, concurrency, timeout)
        else:
            result = _by_edge(model, asked, loading)
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop) or "interrupted; run the same command again to go on") from None
    print_scores(result, out)


@dataclass(frozen=True)
class _Asked:
    """What every backend is asked."""

    rows: Path
    out: Path
    limit: int | None
    rows_of: Path | None
    skip_too_long: bool
    answering: "Answering"
    context: int | None
    say: Callable[[str], None] | None


def _by_edge(model: Path | None, asked: _Asked, loading: "Loading") -> "Result":
    from edge.cli.defaults import default_model
    from edge.replay import evaluate as run_evaluate

    return run_evaluate(
        model or default_model(note),
        asked.rows,
        asked.out,
        limit=asked.limit,
        rows_of=asked.rows_of,
        skip_too_long=asked.skip_too_long,
        answering=asked.answering,
        loading=loading,
        say=asked.say,
    )


def _by_vllm(model: Path | None, asked: _Asked, dtype: str, tp: int) -> "Result":
    from edge.replay.vllm import VllmOptions, evaluate_vllm

    assert model is not None
    return evaluate_vllm(
        model,
        asked.rows,
        asked.out,
        limit=asked.limit,
        rows_of=asked.rows_of,
        skip_too_long=asked.skip_too_long,
        answering=asked.answering,
        context=asked.context,
        engine=VllmOptions(dtype, tp),
        say=asked.say,
    )


def _by_server(
    base_url: str,
    model: Path | None,
    asked: _Asked,
    served_model: str | None,
    concurrency: int,
    timeout: float,
) -> "Result":
    from edge.replay.openai import Service, evaluate_server

    return evaluate_server(
        base_url,
        asked.rows,
        asked.out,
        model=model,
        service=Service(served_model, concurrency, timeout),
        limit=asked.limit,
        rows_of=asked.rows_of,
        skip_too_long=asked.skip_too_long,
        answering=asked.answering,
        context=asked.context,
        say=asked.say,
    )


def _check_options(context: typer.Context, backend: str) -> None:
    """Raises typer.BadParameter for an option that another backend has and the chosen one has not."""
    for name in sorted({name for names in _ONLY.values() for name in names} - set(_ONLY[backend])):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            owners = " and ".join(owner for owner, names in _ONLY.items() if name in names)
            option = "--" + name.replace("_", "-")
            raise typer.BadParameter(f"belongs to the backend {owners}, not to {backend}", param_hint=option)
