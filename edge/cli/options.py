"""Options that commands share: how an answer is chosen, and where it is computed."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

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


def think_tokens(value: str | None) -> int | None:
    """The number of tokens that --think names, None where it names none. Raises typer.BadParameter."""
    if value is None:
        return None
    if value == "off":
        return 0
    if re.fullmatch("[0-9]{1,9}", value):
        return int(value)
    raise typer.BadParameter("must be off or a number of tokens", param_hint="--think")
