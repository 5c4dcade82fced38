"""The command `edge tune`. It imports heavy modules only when it runs."""

from typing import Annotated

import typer

from edge.cli.common import note, note_unless, progress_line, show
from edge.cli.options import MainGpu, Rpc, SplitMode, TensorSplit, Verbose, spread_of
from edge.system.text import counted


def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="GGUF to measure.")],
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds", min=2, max=50, help="Number of runs of each value, alternately with the others."
        ),
    ] = 4,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove what was measured for this model, and measure nothing.")
    ] = False,
    rpc: Rpc = None,
    tensor_split: TensorSplit = None,
    main_gpu: MainGpu = None,
    split_mode: SplitMode = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what was chosen.")] = False,
    verbose: Verbose = False,
) -> None:
    """Measure the fastest options for a model on this machine.

    run, chat, agent and serve then use them; eval, measure, sweep and trial take only threads and GPU layers. Options
    of the command line and settings have priority. edge suggests options that change answers, but does not set them.
    """
    from edge.cli.defaults import chosen_model
    from edge.llama.loading import Loading, with_own_adapter
    from edge.llama.tuned import described
    from edge.system.tuned import tuned_file
    from edge.tune import forget as forget_model
    from edge.tune import tune as run_tune

    spread = spread_of(rpc, tensor_split, main_gpu, split_mode)
    path = chosen_model(model, note_unless(quiet))
    if forget:
        return show(f"{path}: {counted(forget_model(path), 'measurement')} removed from {tuned_file()}")
    say = progress_line if not quiet else lambda text: None
    done = run_tune(path, rounds=rounds, loading=with_own_adapter(path, Loading(spread=spread)), say=say)
    show(f"{path}: {described(done['values'])}")
    for option in done["suggested"]:
        note(f"{option} is faster here, but it changes answers, so edge does not set it")
    return show(f"stored in {tuned_file()}")
