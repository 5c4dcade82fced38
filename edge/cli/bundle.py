"""The commands `edge bundle` and `edge unbundle`. They import heavy modules only when they run."""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import note_unless, noting_replaced, progress_line, show
from edge.cli.options import Force, Silent


def bundle(
    model: Annotated[
        list[str], typer.Option("--model", "-m", metavar="FILE", help="GGUF to include. Repeatable.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Bundle (tar) to write.")],
    replay: Annotated[
        list[Path] | None,
        typer.Option("--replay", "-r", metavar="FILE", help="File of replay rows to include. Repeatable."),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Result JSON to include for edge compare. Repeatable."),
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder to take wheels from and put new ones in. Default: in the cache folder.",
        ),
    ] = None,
    force: Force = False,
    quiet: Silent = False,
) -> None:
    """Make a bundle for a machine without a network.

    A bundle is one tar file: models, rows, references, and the wheels and the script that install edge.
    """
    from edge.airgap.bundle import bundle as run_bundle
    from edge.cli.defaults import chosen_model
    from edge.system.progress import bar

    say = None if quiet else progress_line
    models = [chosen_model(one, note_unless(quiet)) for one in model]
    with noting_replaced(out, quiet=quiet), bar("bundling", say, unit="bytes") as progress:
        bundled = run_bundle(
            models,
            out,
            rows=replay or (),
            references=reference or (),
            wheels=wheels,
            force=force,
            say=note_unless(quiet),
            progress=progress,
        )
    show(bundled)


def unbundle(
    file: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Tar file that edge bundle wrote.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="New folder to unpack to.")],
    install: Annotated[
        bool, typer.Option("--install/--no-install", help="Install edge in DIR/venv, or only unpack.")
    ] = True,
    python: Annotated[
        str | None, typer.Option(help="Python to install with. Default: the one that runs edge.")
    ] = None,
    quiet: Silent = False,
) -> None:
    """Check, unpack and install a bundle, without a network."""
    from edge.airgap.unbundle import unbundle as run_unbundle
    from edge.system.progress import bar

    with bar("checking", None if quiet else progress_line, unit="bytes") as progress:
        unbundled = run_unbundle(file, to, install=install, python=python, progress=progress)
    show(unbundled)
