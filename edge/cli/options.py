"""Options that commands share: how edge samples an answer, and where llama.cpp computes it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edge.cli.common import note, warn
from edge.system.text import parsed_size

if TYPE_CHECKING:
    from edge.llama.loading import Spread, States


def _show_log(wanted: bool) -> None:
    """Print llama.cpp's log on stderr, as the parts of lines that llama.cpp writes."""
    if wanted:
        from edge.llama.log import listen
        from edge.system.text import printable

        listen(lambda text: typer.echo(printable(text, lines=True), err=True, nl=False))


def _value(fits: Callable[[float], bool], range_: str) -> Callable[[float | None], float | None]:
    """A callback that refuses a number for which `fits` is false."""

    def check(value: float | None) -> float | None:
        if value is not None and not fits(value):
            raise typer.BadParameter(f"{value:g} is not {range_}")
        return value

    return check


Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Do only shard I of N, for example 2/3. A shard has whole tasks, and all shards have about equally many "
        "rows. edge join joins them.",
    ),
]


def _temperature(end: str) -> Any:
    return typer.Option(min=0, help=f"Sampling temperature; 0 takes the most likely token{end}")


def _top_p(end: str) -> Any:
    check = _value(lambda value: 0 < value <= 1, "above 0 and at most 1")
    help_ = f"Sample from the most likely tokens with this total probability{end}"
    return typer.Option("--top-p", callback=check, help=help_)


def _top_k(end: str) -> Any:
    return typer.Option("--top-k", min=0, help=f"Sample from this number of most likely tokens{end}")


def _min_p(end: str) -> Any:
    check = _value(lambda value: 0 <= value <= 1, "from 0 to 1")
    help_ = f"Skip tokens below this share of the highest probability{end}"
    return typer.Option("--min-p", callback=check, help=help_)


def _penalty(end: str) -> Any:
    check = _value(lambda value: value > 0, "above 0")
    return typer.Option(
        "--repetition-penalty", callback=check, help=f"Values above 1 make repetition less likely{end}"
    )


ModelOption = Annotated[
    str | None,  # not a Path, which drops `./`: that says that a path is meant, not a hub id
    typer.Option(
        "--model",
        "-m",
        metavar="FILE",
        help="GGUF to use: a file, a name in the store, a known name or a hub id. Default: see edge config.",
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[:SCALE]",
        help="LoRA adapter (GGUF) to add to the model, and the scale of its change. Default: 1. Repeatable.",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        help="With --base-url: file with the server's key. Default: the variable OPENAI_API_KEY.",
    ),
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers", min=-1, help="Layers on the GPU; -1 for all, 0 for none. Default: all that fit."
    ),
]
Rpc = Annotated[
    list[str] | None,
    typer.Option(
        "--rpc",
        metavar="HOST:PORT",
        help="RPC server of llama.cpp whose devices take layers; it is fragile and insecure. Repeatable.",
    ),
]
TensorSplit = Annotated[
    str | None,
    typer.Option(
        "--tensor-split",
        metavar="SHARES",
        help="Share of the layers for each device, such as 3,1. Default: in proportion to free memory.",
    ),
]
MainGpu = Annotated[
    int | None,
    typer.Option(
        "--main-gpu",
        min=0,
        help="With --split-mode none: number of the device that takes all layers; 0 is the first. Default: 0.",
    ),
]
SplitMode = Annotated[
    Literal["none", "layer", "row"] | None,
    typer.Option(
        "--split-mode",
        help="none: use one device. layer: divide the layers over all devices. row: divide the rows of each weight. "
        "Default: layer.",
    ),
]
KvType = Annotated[
    Literal["f16", "q8_0", "q4_0"],
    typer.Option("--kv-type", help="Number type of the KV cache. q8_0 and q4_0 need flash attention."),
]
FlashAttention = Annotated[
    bool | None,
    typer.Option(
        "--flash-attention/--no-flash-attention",
        help="Use flash attention. Default: with a GPU or a quantized KV cache; in eval also if memory is short.",
    ),
]
Draft = Annotated[
    int | None,
    typer.Option(
        "--draft",
        min=0,
        max=15,
        help="Maximum tokens to decode ahead where that saves time; 0 is off. Default: 15 with "
        "layers on a GPU, else 0.",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Replace a file that another run wrote. An input is never replaced.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Do not print the chosen model, the placement and the progress.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub id. Default: main.")]
Offline = Annotated[bool, typer.Option("--offline", help="Do not connect: use only the hub's local cache.")]
Silent = Annotated[bool, typer.Option("--quiet", help="Print no notes and no progress.")]
Batch = Annotated[
    int | None, typer.Option(min=1, max=1 << 20, help="Tokens decoded in one batch. Default: 512.")
]
StateCache = Annotated[
    str | None,
    typer.Option(
        "--state-cache",
        metavar="SIZE",
        help="Maximum disk space for prompt states, such as 2GB. With it, edge also keeps the states of whole prompts. "
        "Default: a tenth of the free disk, at most 4 GB, and only the states of instructions.",
    ),
]
InstructionCache = Annotated[
    str | None,
    typer.Option(
        "--state-cache",
        metavar="SIZE",
        help="Maximum disk space for the states of instructions, such as 2GB. Default: a tenth of the free disk, at "
        "most 4 GB.",
    ),
]
NoStateCache = Annotated[
    bool, typer.Option("--no-state-cache", help="Do not use prompt states on disk, and write none.")
]
Mmap = Annotated[bool, typer.Option("--mmap/--no-mmap", help="Map the file into memory, or read all of it.")]
Style = Annotated[
    Literal["auto", "compact", "indented", "free"],
    typer.Option(
        metavar="auto|compact|indented|free",
        help="White space in the JSON. auto: the model chooses first, then edge enforces its choice.",
    ),
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", min=1, help="Maximum tokens of an answer, its thought included.")
]
TextShare = Annotated[
    float,
    typer.Option(
        "--text-share", min=0, max=1, help="Share of --max-tokens for the analysis and the plan together."
    ),
]
Think = Annotated[
    str | None,
    typer.Option(
        "--think", metavar="off|N", help="Maximum tokens of a thought. Default: a quarter of --max-tokens."
    ),
]
Temperature = Annotated[float, _temperature(".")]
TopP = Annotated[float, _top_p("; 1 is off.")]
TopK = Annotated[int, _top_k("; 0 is off.")]
MinP = Annotated[float, _min_p("; 0 is off.")]
Penalty = Annotated[float, _penalty("; 1 is off.")]
# In edge chat, None is the default of the kind of its answers.
ChatTemperature = Annotated[float | None, _temperature(". Default: 0 for actions, 0.8 for text.")]
ChatTopP = Annotated[float | None, _top_p(". Default: off; 0.95 for text.")]
ChatTopK = Annotated[int | None, _top_k(". Default: off; 40 for text.")]
ChatMinP = Annotated[float | None, _min_p(". Default: off; 0.05 for text.")]
ChatPenalty = Annotated[float | None, _penalty(". Default: 1, which is off.")]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Seed for repeatable sampling. Default: a random seed.")
]

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_show_log, help="Print llama.cpp's log on stderr.")
]


def chosen_states(
    size: str | None, off: bool, *, whole: bool | None = None, continues: bool = False
) -> "States | None":
    """The use of prompt states on disk that the options choose. `whole`: None if a given size decides it."""
    from edge.llama.loading import States

    if size is not None and off:
        raise typer.BadParameter("belongs to --state-cache; give one of them", param_hint="--no-state-cache")
    limit = None if size is None else bytes_of(size, "--state-cache")
    return None if off else States(limit, size is not None if whole is None else whole, continues)


def think_tokens(value: str | None, most: int | None = None) -> int | None:
    """The value of --think in tokens; None if the option is not given. Raises typer.BadParameter.

    A note says so if it is not less than `most`, the value of --max-tokens.
    """
    if value is None:
        return None
    if value == "off":
        return 0
    if re.fullmatch("[0-9]{1,9}", value):
        if most is not None and int(value) >= most:
            note(
                f"--think {value} is not below --max-tokens {most}: a long thought leaves no tokens for the answer"
            )
        return int(value)
    raise typer.BadParameter(f"must be off, or a number of tokens, not {value}", param_hint="--think")


def checked_quant(quant: str, option: str) -> str:
    """The name of a quantization type. Raises typer.BadParameter, which names the option, for an unknown one."""
    from edge.errors import ConversionError
    from edge.llama.types import type_name

    try:
        return type_name(quant)
    except ConversionError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def spread_of(
    rpc: list[str] | None, tensor_split: str | None, main_gpu: int | None, split_mode: str | None
) -> "Spread":
    """The values of --rpc, --tensor-split, --main-gpu and --split-mode; RPC servers with a warning.

    Raises EdgeError or typer.BadParameter for a value that is none.
    """
    from edge.llama.loading import Spread

    try:
        shares = tuple(map(float, tensor_split.split(","))) if tensor_split is not None else ()
    except ValueError:
        raise typer.BadParameter(
            f"must be shares such as 3,1, not {tensor_split}", param_hint="--tensor-split"
        ) from None
    if rpc:
        warn(
            "llama.cpp's authors call its RPC backend fragile and insecure: who reaches its port can take over "
            "the machine; bind it to 127.0.0.1 and connect through an SSH tunnel"
        )
    return Spread(tuple(dict.fromkeys(rpc or ())), shares, main_gpu, split_mode)


def bytes_of(text: str, option: str) -> int:
    """The number of bytes that a size names. Raises typer.BadParameter for `option`."""
    n_bytes = parsed_size(text)
    if n_bytes is None:
        raise typer.BadParameter("must be a size such as 6GB, 800MB or 5.5GiB", param_hint=option)
    return n_bytes
