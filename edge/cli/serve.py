"""The command `edge serve`. It imports heavy modules only when it runs."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from edge.cli.common import Threads, note, progress_line
from edge.cli.options import (
    Batch,
    Draft,
    FlashAttention,
    GpuLayers,
    KvType,
    Lora,
    MainGpu,
    Mmap,
    ModelOption,
    NoStateCache,
    Rpc,
    SplitMode,
    StateCache,
    TensorSplit,
    Verbose,
    chosen_states,
    spread_of,
)
from edge.errors import ServeError

_KEY = "EDGE_API_KEY"


def serve(
    model: ModelOption = None,
    lora: Lora = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. An address other than localhost needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8080,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"File with the API key that clients must send. Default: the variable {_KEY}.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let web pages of this origin use the server, such as http://localhost:3000. Repeatable.",
        ),
    ] = None,
    answers: Annotated[
        Literal["action", "text"] | None,
        typer.Option(
            metavar="action|text",
            help="Chat answers of requests without a response_format or tools: actions, or free text. "
            "Default: actions for terminal models, text for all others.",
        ),
    ] = None,
    tool_choice: Annotated[
        Literal["auto", "required"],
        typer.Option(
            metavar="auto|required",
            help="Answer to a request that does not say which tool to call. auto: text or calls. required: one call, "
            "except after the result of a call.",
        ),
    ] = "auto",
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Maximum number of answers written at the same time. Default: see edge tune, or 4.",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=0, help="Maximum number of waiting requests; further ones get status 429.")
    ] = 64,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx",
            min=64,
            help="Maximum tokens of a prompt and its answer. Default: the model's, at most 8,192.",
        ),
    ] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", min=1, help="Maximum tokens of a chat answer whose request has no maximum."
        ),
    ] = 1024,
    body_limit: Annotated[int, typer.Option(min=1, help="Maximum request size in MiB.")] = 16,
    receive_timeout: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum seconds to receive the head of a request, and again to receive its body."
        ),
    ] = 30,
    cache_ram: Annotated[
        int,
        typer.Option(
            min=0,
            help="Memory in MiB to keep prompts and answers, for later prompts that begin with the same text.",
        ),
    ] = 1024,
    gpu_layers: GpuLayers = None,
    rpc: Rpc = None,
    tensor_split: TensorSplit = None,
    main_gpu: MainGpu = None,
    split_mode: SplitMode = None,
    threads: Threads = None,
    batch: Batch = None,
    kv_type: KvType = "f16",
    flash_attention: FlashAttention = None,
    draft: Draft = None,
    mmap: Mmap = True,
    state_cache: StateCache = None,
    no_state_cache: NoStateCache = False,
    verbose: Verbose = False,
) -> None:
    """Serve a model to agents over an OpenAI-compatible API.

    By default, each chat answer of a terminal model is a valid action.
    """
    try:
        from edge.serve import server
    except ModuleNotFoundError as error:
        if error.name not in ("h11", "prometheus_client", "starlette", "uvicorn"):
            raise
        raise ServeError(
            f"{error.name} is not installed, and edge needs it: install edge again, in a clone with pip install ."
        ) from None
    from edge.chat.kind import default_answers
    from edge.cli.defaults import chosen_model
    from edge.llama.loading import Loading, parse_adapters, with_own_adapter
    from edge.llama.tuned import with_tuned

    key = _key(api_key_file)
    adapters, spread = parse_adapters(lora or ()), spread_of(rpc, tensor_split, main_gpu, split_mode)
    path = chosen_model(model, note, announce=True)
    loading = Loading(
        gpu_layers=gpu_layers,
        threads=threads,
        context=context,
        parallel=parallel,
        batch=batch,
        kv_type=kv_type,
        flash_attention=flash_attention,
        draft=draft,
        mmap=mmap,
        adapters=adapters,
        spread=spread,
        states=chosen_states(state_cache, no_state_cache, continues=state_cache is not None),
    )
    server.serve(
        path,
        server.Address(host, port, key, tuple(cors_origin or ())),
        server.Limits(max_tokens, queue, body_limit << 20, receive_timeout, cache_ram << 20),
        with_tuned(path, with_own_adapter(path, loading, beside=True), measures=False, say=note),
        say=progress_line,
        answers=answers or default_answers(path),
        must_call=tool_choice == "required",
    )


def _key(file: Path | None) -> str | None:
    """The API key, from a file or the variable; None without one. Raises ServeError if no header can carry it."""
    from edge.system.places import read_text

    key = os.environ.get(_KEY) or None
    if file is not None:
        key = read_text(file).strip()
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise ServeError(f"{file or _KEY}: a key is one line of printable ASCII without spaces")
    return key
