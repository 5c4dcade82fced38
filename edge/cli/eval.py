"""`edge eval`: replay recorded steps with edge, vLLM or a server."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edge.cli.common import Threads, is_given, note, note_unless, noting_replaced, progress_line
from edge.cli.options import (
    ApiKeyFile,
    Batch,
    FlashAttention,
    Force,
    GpuLayers,
    InstructionCache,
    KvType,
    Lora,
    MainGpu,
    MaxTokens,
    MinP,
    Mmap,
    NoStateCache,
    Penalty,
    Quiet,
    Rpc,
    Seed,
    Shard,
    SplitMode,
    Style,
    Temperature,
    TensorSplit,
    TextShare,
    Think,
    TopK,
    TopP,
    Verbose,
    chosen_states,
    spread_of,
    think_tokens,
)
from edge.cli.pull import Yes
from edge.cli.results import print_scores

if TYPE_CHECKING:
    from edge.answer.answering import Answering
    from edge.llama.loading import Loading
    from edge.replay.asking import Asking
    from edge.replay.openai import Service
    from edge.replay.stored_result import Result

# Options that only some backends have.
_ONLY = {
    "edge": (
        "lora unconstrained think text_share style parallel gpu_layers rpc tensor_split main_gpu split_mode threads "
        "batch kv_type flash_attention mmap state_cache no_state_cache".split()
    ),
    "vllm": ["tp", "dtype", "structured"],
    "openai": ["base_url", "api_key_file", "served_model", "concurrency", "timeout", "structured"],
}


def evaluate(
    command: typer.Context,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", "-r", help="Replay rows (JSON Lines). Default: the embedded rows."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Result JSON to write.")] = Path("result.json"),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="FILE",
            help="GGUF to evaluate: a file, a name in the store, a known name or a hub id. Default: see edge config. "
            "vllm: a Hugging Face folder. openai: a GGUF or folder that renders the prompts; without it, the server "
            "renders them.",
        ),
    ] = None,
    lora: Lora = None,
    backend: Annotated[
        Literal["edge", "vllm", "openai"],
        typer.Option(
            metavar="edge|vllm|openai",
            help="Engine that answers: edge itself, vLLM in this process, or a server with the OpenAI API.",
        ),
    ] = "edge",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N rows.")] = None,
    rows_of: Annotated[
        Path | None, typer.Option("--rows-of", help="Use only the steps of this result JSON.")
    ] = None,
    shard: Shard = None,
    max_tokens: MaxTokens = 1024,
    unconstrained: Annotated[
        bool, typer.Option("--unconstrained", help="Answer without the grammar, as vLLM does.")
    ] = False,
    structured: Annotated[
        bool,
        typer.Option("--structured", help="vllm, openai: constrain answers to the action's JSON schema."),
    ] = False,
    skip_too_long: Annotated[
        bool, typer.Option("--skip-too-long", help="Leave out rows that do not fit into the context.")
    ] = False,
    thinking_mode: Annotated[
        Literal["auto", "on", "off"],
        typer.Option(
            "--thinking-mode",
            metavar="auto|on|off",
            help="Value of enable_thinking in the chat template. auto: not set, for Gemma 4 off.",
        ),
    ] = "auto",
    strip_thinking_history: Annotated[
        Literal["auto", "on", "off"],
        typer.Option(
            "--strip-thinking-history",
            metavar="auto|on|off",
            help="on: remove thoughts from past answers in the prompts. auto: off, the chat template decides.",
        ),
    ] = "auto",
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
            help="Maximum number of answers written at the same time. Default: 8 on CPUs, 16 on a GPU, fewer if memory "
            "is short. 1 is exact: the answers are byte for byte those of an empty KV cache.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx",
            min=1,
            help="Maximum tokens of a row, and of the KV cache. Default: the model's context length.",
        ),
    ] = None,
    gpu_layers: GpuLayers = None,
    rpc: Rpc = None,
    tensor_split: TensorSplit = None,
    main_gpu: MainGpu = None,
    split_mode: SplitMode = None,
    threads: Threads = None,
    batch: Batch = None,
    kv_type: KvType = "f16",
    flash_attention: FlashAttention = None,
    mmap: Mmap = True,
    state_cache: InstructionCache = None,
    no_state_cache: NoStateCache = False,
    tp: Annotated[int, typer.Option(min=1, help="vllm: number of GPUs to split the model over.")] = 1,
    dtype: Annotated[str, typer.Option(help="vllm: number type to compute in.")] = "bfloat16",
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            help="openai: URL of the server, for example http://localhost:8000/v1.",
        ),
    ] = None,
    api_key_file: ApiKeyFile = None,
    served_model: Annotated[
        str | None,
        typer.Option(
            "--served-model", help="openai: name of the model on the server. Default: the only one there."
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=1024, help="openai: maximum number of requests at the same time.")
    ] = 8,
    timeout: Annotated[
        float, typer.Option(min=1, help="openai: maximum seconds to wait for an answer.")
    ] = 600.0,
    force: Force = False,
    yes: Yes = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Replay recorded steps with a model and score its answers.

    If it is interrupted, run the same command again to resume.
    """
    _check_options(command, backend)
    if backend == "openai" and base_url is None:
        raise typer.BadParameter("--backend openai needs the server's URL", param_hint="--base-url")
    if backend == "vllm" and model is None:
        raise typer.BadParameter("--backend vllm needs a Hugging Face folder", param_hint="--model")
    thought = think_tokens(think, max_tokens)

    from edge.answer.answering import Answering
    from edge.answer.sampling import Sampling
    from edge.llama.loading import Loading, parse_adapters
    from edge.replay.asking import Asking
    from edge.replay.shards import parse_shard
    from edge.system.paths import embedded_rows

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    constrained = structured if backend != "edge" else not unconstrained
    answering = Answering(max_tokens, sampling, thought, text_share, style, constrained)
    rows, say = replay or embedded_rows(), None if quiet else progress_line
    asking = Asking(thinking_mode, strip_thinking_history, parse_shard(shard))
    work = _Work(rows, out, limit, rows_of, skip_too_long, answering, asking, context, force, yes, say)
    adapters = parse_adapters(lora or ())
    loading = Loading(
        *(gpu_layers, threads, context, parallel, batch, kv_type, flash_attention, mmap),
        adapters=adapters,
        spread=spread_of(rpc, tensor_split, main_gpu, split_mode),
    )
    loading = replace(loading, states=chosen_states(state_cache, no_state_cache, whole=False))
    with noting_replaced(out, quiet=quiet):
        if backend == "vllm":
            result = _by_vllm(model, work, dtype, tp)
        elif backend == "openai":
            # The other backends do not need the HTTP client.
            from edge.replay.openai import Service

            service = Service(served_model, concurrency, timeout, key_file=api_key_file, context=context)
            result = _by_server(base_url or "", model, work, service)
        else:
            result = _by_edge(model, work, loading)
    print_scores(result, out)


@dataclass(frozen=True)
class _Work:
    """What every backend needs."""

    rows: Path
    out: Path
    limit: int | None
    rows_of: Path | None
    skip_too_long: bool
    answering: "Answering"
    asking: "Asking"
    context: int | None
    force: bool
    yes: bool
    say: Callable[[str], None] | None

    def check(self) -> None:
        """Check the files before a model is downloaded. Raises ReplayError or ResultError."""
        from edge.replay.prepare import chosen_rows
        from edge.system.outputs import check_output

        rows = chosen_rows(self.rows, self.limit, self.rows_of)
        if self.asking.shard is not None:
            self.asking.shard.places([row.task_id for row in rows], str(self.rows))
        check_output(self.out, [self.rows, self.rows_of])


def _by_edge(model: str | None, work: _Work, loading: "Loading") -> "Result":
    from edge.cli.defaults import chosen_model
    from edge.llama.loading import with_own_adapter
    from edge.llama.tuned import with_tuned
    from edge.replay import evaluate as run_evaluate

    path = chosen_model(model, note_unless(work.say is None), yes=work.yes, check=work.check, measures=True)
    return run_evaluate(
        path,
        work.rows,
        work.out,
        limit=work.limit,
        rows_of=work.rows_of,
        skip_too_long=work.skip_too_long,
        answering=work.answering,
        asking=work.asking,
        loading=with_tuned(
            path, with_own_adapter(path, loading), measures=True, say=note_unless(work.say is None)
        ),
        force=work.force,
        say=work.say,
    )


def _by_vllm(model: str | None, work: _Work, dtype: str, tp: int) -> "Result":
    from edge.cli.defaults import checkpoint_source
    from edge.formats.checkpoint import locate
    from edge.replay.vllm import VllmOptions, evaluate_vllm

    assert model is not None
    found = checkpoint_source(model, yes=work.yes, check=lambda _: work.check())
    return evaluate_vllm(
        locate(found.text, revision=found.hub.revision, offline=found.hub.offline)[0],
        work.rows,
        work.out,
        limit=work.limit,
        rows_of=work.rows_of,
        skip_too_long=work.skip_too_long,
        answering=work.answering,
        asking=work.asking,
        context=work.context,
        engine=VllmOptions(dtype, tp),
        force=work.force,
        say=work.say,
    )


def _by_server(base_url: str, model: str | None, work: _Work, service: "Service") -> "Result":
    from edge.cli.defaults import chosen_model
    from edge.replay.openai import evaluate_server

    return evaluate_server(
        base_url,
        work.rows,
        work.out,
        model=None if model is None else chosen_model(model, note, yes=work.yes, check=work.check),
        service=service,
        limit=work.limit,
        rows_of=work.rows_of,
        skip_too_long=work.skip_too_long,
        answering=work.answering,
        asking=work.asking,
        force=work.force,
        say=work.say,
    )


def _check_options(context: typer.Context, backend: str) -> None:
    """Raises typer.BadParameter for an option of another backend."""
    for name in sorted({name for names in _ONLY.values() for name in names} - set(_ONLY[backend])):
        if is_given(context, name):
            owners = " and ".join(owner for owner, names in _ONLY.items() if name in names)
            option = "--" + name.replace("_", "-")
            raise typer.BadParameter(f"belongs to the backend {owners}, not to {backend}", param_hint=option)
