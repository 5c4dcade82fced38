"""The commands `edge score` and `edge compare`. They import heavy modules only when they run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli.common import note, noting_replaced, show, table
from edge.cli.options import Force
from edge.system.text import counted

if TYPE_CHECKING:
    from edge.compare.trials import TrialResult
    from edge.replay.stored_result import Result


def score(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS", help="Predictions (JSON Lines) with task_id, step_idx and pred_text."
        ),
    ],
    replay: Annotated[Path, typer.Option("--replay", "-r", help="Replay rows that the predictions answer.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Result JSON to write.")] = Path("result.json"),
    model: Annotated[str | None, typer.Option(help="Name of the model, for the result.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out rows that have no prediction.")
    ] = False,
    force: Force = False,
) -> None:
    """Score answers that another engine wrote."""
    from edge.replay.score import score as run_score

    with noting_replaced(out):
        result = run_score(predictions, replay, out, model=model, partial=partial, force=force)
    print_scores(result, out)


def compare(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT", help="Result JSONs.")],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Result JSON to compare with, or a known model's name for its published figures.",
        ),
    ] = None,
    causes: Annotated[
        bool,
        typer.Option(
            "--causes",
            help="Find the pairs of results that differ in exactly one thing, and show its effect.",
        ),
    ] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write the comparison as JSON.")
    ] = None,
    force: Force = False,
) -> None:
    """Compare results with a reference, or find what differs.

    With --reference, the comparison is step by step. With --causes, edge finds pairs of results that differ in one
    thing. Results of edge trial are compared task by task; without --reference, with the first of them.
    """
    from edge.compare.trials import is_trials

    named = [*map(str, results), *([] if reference is None else [reference])]
    if any(map(is_trials, named)):
        return _compare_trials(results, reference, json_out, causes=causes, force=force)
    from edge.compare.causes import causes as find_causes
    from edge.compare.causes import causes_markdown
    from edge.compare.run import compare as run_compare
    from edge.compare.stored import check_comparison, write_comparison

    if reference is None and not causes:
        raise typer.BadParameter(
            "give it a result or a known model to compare with, or give --causes", param_hint="--reference"
        )
    if json_out is not None:
        check_comparison(json_out, results, reference, causes=causes, force=force)
    comparison = None if reference is None else run_compare(results, reference)
    # A reference that is a result is one of the runs.
    others = [Path(reference)] if reference is not None and comparison and comparison.paired else []
    found = find_causes(distinct([*others, *results])) if causes else None
    if json_out is not None:
        with noting_replaced(json_out):
            write_comparison(json_out, results, reference, comparison, found)
    if comparison is not None:
        show(comparison.to_markdown())
    if found is not None:
        show(causes_markdown(found))


def _compare_trials(
    results: list[Path], reference: str | None, json_out: Path | None, *, causes: bool, force: bool
) -> None:
    """Compare results of `edge trial`."""
    from edge.compare.stored import check_comparison, write_trial_comparison
    from edge.compare.trial_pairs import compare_trials, trials_markdown

    if causes:
        raise typer.BadParameter("is for results of edge eval, not of edge trial", param_hint="--causes")
    if reference is None:
        reference, results = str(results[0]), results[1:]
    if not results:
        raise typer.BadParameter("give two results of edge trial", param_hint="RESULT")
    if json_out is not None:
        check_comparison(json_out, results, reference, causes=False, force=force)
    found = [compare_trials(path, reference) for path in results]
    if json_out is not None:
        with noting_replaced(json_out):
            write_trial_comparison(json_out, results, reference, found)
    show(trials_markdown(found))


def distinct(paths: list[Path]) -> list[Path]:
    """The paths, each file once."""
    return list({path.resolve(): path for path in reversed(paths)}.values())[::-1]


def print_scores(result: "Result", out: Path) -> None:
    """Print the headline figures of a result on one line."""
    figures = result["aggregate"]
    show(
        f"{out}: {counted(figures['steps'], 'step')}, score {100 * figures['avg_command_f1']:.2f}, "
        f"first command {figures['first_cmd_exact_pct']} %, valid JSON {figures['valid_json_pct']} %"
    )


def print_trials(results: "Sequence[tuple[Path, TrialResult]]") -> None:
    """Print the figures of each model, and of each level."""
    from edge.compare.trial_figures import figure_cells, share_text
    from edge.compare.trials import ENDS

    after = [*ENDS, "not run", "wall", "steps", "tokens"]
    rows = []
    for path, result in results:
        for level, found in [("all", result["figures"]), *result["by_level"].items()]:
            cells = figure_cells(found)
            rows.append([path.stem, level, *(cells[name] for name in ("solved", "share", *after))])
    table(["result", "level", "solved", "share (95 % interval)", *after], rows)
    for path, result in results:
        for passes in result["figures"]["passes"]:
            k = passes["k"]
            note(f"{path.stem}: pass@{k} {share_text(passes['any'])}, pass^{k} {share_text(passes['all'])}")
