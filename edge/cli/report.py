"""The command `edge report`. It imports heavy modules only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import note, noting_replaced, show
from edge.cli.options import Force
from edge.system.text import printable

_SHOWN_FAULTS = 20


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT",
            help="Result JSONs, and measurement JSONs and results of edge trial of the same models.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML page to write.")] = Path("report.html"),
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Result JSON to compare with, or a known model's name for its published figures. Default: the only "
            "unquantized one of several results. Without one, edge compares nothing.",
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write a short form in Markdown.")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            "--card", help="Also write a Hugging Face model card for a repository with these files."
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            metavar="OWNER/NAME",
            help="For --card: the checkpoint that was quantized. Default: what the files name.",
        ),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            "--license", help="For --card: licence as the hub names it. Default: what the GGUFs name."
        ),
    ] = None,
    quantized_by: Annotated[
        str | None,
        typer.Option(
            "--quantized-by", help="For --card: who quantized the files. Default: what the GGUFs name."
        ),
    ] = None,
    pipeline_tag: Annotated[
        str, typer.Option("--pipeline-tag", help="For --card: task of the model on the hub.")
    ] = "text-generation",
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="For --card: a tag in addition to gguf. Repeatable.")
    ] = None,
    ggufs: Annotated[
        list[Path] | None,
        typer.Option(
            "--gguf",
            help="For --card: GGUF of one of the results, for the licence and the memory. Repeatable.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "--ctx",
            min=1,
            help="For --card: context length for the memory. Default: that of a known model, else 8,192.",
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option("--plots", metavar="FOLDER", help="Also write the plots as PNG into this folder."),
    ] = None,
    worse: Annotated[
        int, typer.Option("--worse", min=0, help="Maximum number of steps that got worse, for each result.")
    ] = 20,
    replay: Annotated[
        Path | None,
        typer.Option(
            "--replay",
            "-r",
            help="Replay rows. With them, the steps that got worse show the last message of the task.",
        ),
    ] = None,
    notes: Annotated[
        list[str] | None,
        typer.Option("--note", help="Paragraph for the beginning of the page. Repeatable."),
    ] = None,
    title: Annotated[
        str, typer.Option(help="Heading of the page. Default: from the names of the models.")
    ] = "",
    verify: Annotated[
        Path | None,
        typer.Option(
            "--verify",
            metavar="PAGE",
            help="Write nothing. Compute every figure of this page again from its files, given as RESULT, and say "
            "whether it is their page. Exit code 1 if not.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Write a page about the cost of quantization.

    The page has a verdict, tables, plots, and the steps that got worse.
    """
    if verify is not None:
        _verify(verify, results, replay)
        return
    from edge.report.build import report as write_report
    from edge.report.model_card import CardFacts
    from edge.report.trial_words import unmatched

    given = (base_model, license, quantized_by, tags, ggufs, context)
    if card is None and any(given):
        raise typer.BadParameter("needs --card", param_hint="an option of the model card")
    facts = None
    if card is not None:
        facts = CardFacts(
            card,
            base_model,
            license,
            quantized_by,
            pipeline_tag,
            tuple(tags or ()),
            tuple(ggufs or ()),
            context,
        )
    with noting_replaced(out, markdown, card):
        contents = write_report(
            results,
            out,
            reference,
            markdown=markdown,
            card=facts,
            plots=plots,
            worse=worse,
            replay=replay,
            title=title,
            notes=notes or (),
            force=force,
        )
    if said := unmatched(contents):
        note(said)
    for path in filter(None, (out, markdown, card, plots)):
        typer.echo(str(path))


def _verify(page: Path, results: list[Path], replay: Path | None) -> None:
    """Print what is wrong with a page, a line for each fault. Raises ResultError if anything is."""
    from edge.errors import ResultError
    from edge.report import patterns
    from edge.report.verify import verify
    from edge.system.text import counted

    found = verify(page, results, replay)
    for text in found.notes:
        note(text)
    for fault in found.faults[:_SHOWN_FAULTS]:
        show(printable(fault))
    if (more := len(found.faults) - _SHOWN_FAULTS) > 0:
        verb = "differs" if more == 1 else "differ"
        show(patterns.MORE_FAULTS(places=counted(more, "more place"), verb=verb))
    if found.faults:
        faults = counted(len(found.faults), "fault")
        raise ResultError(patterns.NOT_VERIFIED(page=page, faults=faults))
    files = counted(len(results), "file")
    show(patterns.VERIFIED(page=page, files=files, texts=f"{found.texts:,}"))
