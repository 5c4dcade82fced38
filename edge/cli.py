"""The command line: parse options, call one function, print. Heavy modules are imported where used."""

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from edge import __version__
from edge.cli_measure import measure
from edge.cli_models import Interrupted, Threads, convert, doctor, imatrix, inspect, models, note
from edge.cli_results import compare, print_scores, score
from edge.errors import ContextError, EdgeError, PromptError

if TYPE_CHECKING:
    from edge.prompt import Rendered

app = typer.Typer(
    name="edge",
    help="Quantize a terminal agent's checkpoint, run it offline with guaranteed JSON, measure what it cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="A GGUF. Default: the newest in models/, else the embedded model."),
]
GpuLayers = Annotated[
    int | None,
    typer.Option("--gpu-layers", min=-1, help="Layers to offload. Default: all that fit; -1 is all, 0 none."),
]
KvType = Annotated[
    Literal["f16", "q8_0", "q4_0"],
    typer.Option("--kv-type", help="Numbers of the cache; the smaller ones need flash attention."),
]
FlashAttention = Annotated[
    bool | None,
    typer.Option(
        "--flash-attention/--no-flash-attention",
        help="Default: on with a GPU or a quantized cache; in eval also where memory is short.",
    ),
]
Batch = Annotated[int | None, typer.Option(min=1, help="Tokens decoded at once. Default: 512.")]
Mmap = Annotated[
    bool, typer.Option("--mmap/--no-mmap", help="Map the file into memory, or read it in whole.")
]
Style = Annotated[
    Literal["auto", "compact", "indented", "free"],
    typer.Option(
        metavar="auto|compact|indented|free",
        help="White space of the JSON; auto: the model's own, then forced.",
    ),
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", min=1, help="Budget of an answer, its thought included.")
]
TextShare = Annotated[
    float,
    typer.Option("--text-share", min=0, max=1, help="Share of the budget for analysis and plan together."),
]
Think = Annotated[
    str | None,
    typer.Option(
        "--think", metavar="off|N", help="Most tokens for a thought. Default: a quarter of the budget."
    ),
]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the best token.")]
TopP = Annotated[float, typer.Option("--top-p", help="Sample from this share of the probability.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Sample from this many tokens; 0 is off.")]
MinP = Annotated[float, typer.Option("--min-p", help="Leave out tokens below this share of the best one's.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 makes repeats rarer.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Makes sampling repeatable.")]


app.command()(convert)
app.command()(imatrix)
app.command()(inspect)


@app.command()
def run(
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="What to do. Default: standard input.")
    ] = None,
    model: ModelOption = None,
    screen: Annotated[Path | None, typer.Option(help="A file with what the terminal shows now.")] = None,
    messages: Annotated[
        Path | None, typer.Option(help="A JSON file with the whole conversation, instead of a task.")
    ] = None,
    max_tokens: MaxTokens = 1024,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    think: Think = None,
    text_share: TextShare = 0.6,
    style: Style = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="The action with its metadata, as one JSON object.")
    ] = False,
    gpu_layers: GpuLayers = None,
    threads: Threads = None,
    batch: Batch = None,
    kv_type: KvType = "f16",
    flash_attention: FlashAttention = None,
    mmap: Mmap = True,
) -> None:
    """Ask for the next action. It is only printed: review it before you run any of it."""
    think_tokens = _think(think)
    if messages is not None and (task is not None or screen is not None):
        raise typer.BadParameter("--messages takes the place of TASK and --screen", param_hint="--messages")
    if messages is None and task is None:
        if sys.stdin.isatty():
            raise typer.BadParameter(
                "give a task, --messages FILE, or a task on standard input", param_hint="TASK"
            )
        task = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").strip()
        if not task:
            raise typer.BadParameter("standard input is empty", param_hint="TASK")
    elif task is not None and not task.strip():
        raise typer.BadParameter("the task is empty", param_hint="TASK")
    if task is not None and any("\ud800" <= c <= "\udfff" for c in task):
        raise PromptError("the task is not UTF-8 text")

    from edge.defaults import default_model
    from edge.footprint import BATCH
    from edge.machine import devices, memory
    from edge.placement import place
    from edge.prompt import read_messages, task_messages
    from edge.replay import read_text
    from edge.runner import Runner
    from edge.sampling import Sampling

    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed)
    if messages is not None:
        chat = read_messages(messages)
    else:
        chat = task_messages(task or "", None if screen is None else read_text(screen))
    path = model or default_model(note)
    free, found = memory(), devices()
    if gpu_layers and not any("GPU" in device.kind for device in found):
        note("llama.cpp sees no GPU here; --gpu-layers has no effect")
    with Runner.load(
        path,
        gpu_layers=gpu_layers,
        threads=threads,
        batch=batch or BATCH,
        kv_type=kv_type,
        flash_attention=flash_attention,
        mmap=mmap,
    ) as runner:
        stream = sys.stdout.isatty() and not as_json
        emit: Callable[[str], None] | None = (
            (lambda text: typer.echo(_shown(text), nl=False)) if stream else None
        )
        rendered = runner.render(chat)
        _note_fallback(path, rendered)
        prompt_ids = runner.encode(rendered.text)
        if len(prompt_ids) + max_tokens <= runner.engine.context_length:
            try:
                place(
                    runner.model_file,
                    [len(prompt_ids)],
                    max_tokens,
                    memory=free,
                    devices=found,
                    gpu_layers=gpu_layers,
                    batch=batch,
                    kv_type=kv_type,
                    flash_attention=flash_attention,
                )
            except ContextError as error:
                note(f"{error}; it may be slow, or end for want of memory")
        action = runner.act_on(
            prompt_ids,
            max_tokens,
            sampling=sampling,
            think=think_tokens,
            text_share=text_share,
            style=style,
            emit=emit,
        )
    typer.echo("" if stream else action.to_json() if as_json else action.text)
    if action.closed_at_budget and not as_json:
        note(f"the budget of {max_tokens} tokens ended before the answer did; it was closed validly")


@app.command(name="eval")
def evaluate(
    replay: Annotated[
        Path | None,
        typer.Option("--replay", "-r", help="Replay rows (JSON Lines). Default: the embedded set."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The result JSON to write.")] = Path("result.json"),
    model: ModelOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    rows_of: Annotated[
        Path | None, typer.Option("--rows-of", help="Only the steps that this result JSON holds.")
    ] = None,
    max_tokens: MaxTokens = 1024,
    unconstrained: Annotated[
        bool, typer.Option("--unconstrained", help="Without the grammar, as vLLM runs.")
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
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no placement and no progress.")] = False,
) -> None:
    """Replay recorded steps with a model and score its answers. Interrupted, it goes on when started again."""
    think_tokens = _think(think)
    from edge.defaults import default_model
    from edge.evaluate import evaluate as run_evaluate
    from edge.paths import embedded_rows
    from edge.sampling import Sampling

    try:
        result = run_evaluate(
            model or default_model(note),
            replay or embedded_rows(),
            out,
            limit=limit,
            rows_of=rows_of,
            max_tokens=max_tokens,
            constrained=not unconstrained,
            skip_too_long=skip_too_long,
            sampling=Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed),
            think=think_tokens,
            text_share=text_share,
            style=style,
            n_ctx=ctx,
            parallel=parallel,
            gpu_layers=gpu_layers,
            threads=threads,
            batch=batch,
            kv_type=kv_type,
            flash_attention=flash_attention,
            mmap=mmap,
            quiet=quiet,
        )
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop) or "interrupted; run the same command again to go on") from None
    print_scores(result, out)


app.command()(score)
app.command()(compare)
app.command()(measure)


@app.command()
def prompt(
    messages: Annotated[Path, typer.Option(help="A JSON file with the messages.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="A GGUF or a Hugging Face folder.")],
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Print the token ids instead of the text.")
    ] = False,
) -> None:
    """Print the prompt that a model gets for some messages."""
    from edge.prompt import prompt_source, read_messages, render_prompt

    chat = read_messages(messages)
    rendered = render_prompt(chat, prompt_source(model))
    _note_fallback(model, rendered)
    if tokens:
        from edge.tokens import encode_with

        typer.echo(json.dumps(encode_with(model, rendered.text)))
    else:
        typer.echo(rendered.text, nl=sys.stdout.isatty())


app.command()(models)
app.command()(doctor)


def _think(value: str | None) -> int | None:
    if value is None:
        return None
    if value == "off":
        return 0
    if re.fullmatch("[0-9]{1,9}", value):
        return int(value)
    raise typer.BadParameter("must be off or a number of tokens", param_hint="--think")


def _note_fallback(model: Path, rendered: "Rendered") -> None:
    if rendered.status != "chat_template":
        why = (
            f"its chat template cannot be rendered ({rendered.reason})"
            if rendered.reason
            else "no chat template"
        )
        note(f"{model}: {why}; the prompt is the {rendered.status}")


def _shown(text: str) -> str:
    """The action's JSON with the control characters that it may hold raw, and a terminal may obey, as escapes."""
    return re.sub("[\x7f-\x9f]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edge {__version__}")
        raise typer.Exit


@app.callback()
def _edge(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """The `edge` command: 0 done, 1 bad input, 2 wrong usage, 130 interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    try:
        app(prog_name="edge")
    except EdgeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        sys.exit(130)
    except SystemExit as stop:
        if stop.code == 130:
            typer.echo("interrupted; nothing was written", err=True)
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {where}{error.strerror or error}", err=True)
        sys.exit(1)
    sys.exit(0)
