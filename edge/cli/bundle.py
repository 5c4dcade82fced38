"""The commands about the air gap: bundle, unbundle. Heavy modules are imported where used."""

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.common import Interrupted, note


def bundle(
    model: Annotated[list[Path], typer.Option("--model", "-m", help="A GGUF; repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The tar to write.")],
    replay: Annotated[
        list[Path] | None, typer.Option("--replay", "-r", help="Replay rows to take along; repeatable.")
    ] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="A result JSON to compare with there; repeatable.")
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Take wheels from here and keep new ones here. Default: in the cache folder."
        ),
    ] = None,
) -> None:
    """Put models, rows, references and all that installs edge into one tar, for a machine without a network."""
    from edge.airgap.bundle import bundle as run_bundle
    from edge.system.progress import bar

    try:
        with bar("bundling", show=True, unit="bytes") as watch:
            done = run_bundle(
                model,
                out,
                rows=replay or (),
                references=reference or (),
                wheels=wheels,
                tell=note,
                progress=watch,
            )
    except KeyboardInterrupt:
        raise Interrupted("interrupted; no bundle was written, wheels that were finished are kept") from None
    typer.echo(done)


def unbundle(
    file: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A tar of edge bundle.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")],
    install: Annotated[
        bool, typer.Option("--install/--no-install", help="Install edge there too, in DIR/venv.")
    ] = True,
    python: Annotated[
        str | None, typer.Option(help="The Python to install with. Default: the one that runs edge.")
    ] = None,
) -> None:
    """Check a bundle to its last byte, unpack it and install it, without a network."""
    from edge.airgap.unbundle import unbundle as run_unbundle

    try:
        done = run_unbundle(file, to, install=install, python=python, progress=True)
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop) or "interrupted; nothing was written") from None
    typer.echo(done)
