"""The command `edge pull`, and the question before a large download. Heavy modules are imported only when they run."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli.common import Threads, agreed, is_terminal, note, note_unless, progress_line, show
from edge.cli.options import Offline, Revision, Silent
from edge.errors import ModelFileError
from edge.system.text import size

if TYPE_CHECKING:
    from edge.names import Reference
    from edge.pull import Download

Yes = Annotated[
    bool,
    typer.Option(
        "--yes", "-y", help="Download more than 1 GB without a question. Needed without a terminal."
    ),
]


def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Known model, org/repo, org/repo:QUANT or org/repo/FILE.gguf on the hub."
        ),
    ],
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant",
            "-q",
            help="Quantization type, as in NAME:QUANT. Default: that of the known model, or Q4_K_M.",
        ),
    ] = None,
    revision: Revision = None,
    offline: Offline = False,
    yes: Yes = False,
    threads: Threads = None,
    quiet: Silent = False,
) -> None:
    """Download a model into the model store.

    edge takes a GGUF as it is, and converts a repository of safetensors. An interrupted download resumes.
    """
    from edge.formats.hub import HubOptions
    from edge.names import Reference, check_type, resolve
    from edge.pull import pull as run_pull

    found = resolve(name, remote=True)
    if isinstance(found, Reference) and quant is not None:
        if found.quant is not None or found.file is not None:
            raise typer.BadParameter(
                f"{name} already names a type or a file; omit --quant", param_hint="--quant"
            )
        check_type(name, quant)
        found = replace(found, quant=quant)
    pulled = run_pull(
        found,
        options=HubOptions(revision, offline),
        confirm=ask_first(yes, quiet=quiet),
        say=None if quiet else progress_line,
        threads=threads,
    )
    for warning in pulled.warnings:
        note_unless(quiet)(warning)
    origin = pulled.hub_id + (f" at {pulled.commit[:12]}" if pulled.commit else "")
    got = f"{size(pulled.n_downloaded)} downloaded" if pulled.n_downloaded else "no download needed"
    show(
        f"{pulled.path}: {pulled.quant}, {size(pulled.n_bytes)}, from {origin}, {got}\nSHA-256 {pulled.sha256}"
    )


def ask_first(yes: bool | None, *, quiet: bool = False) -> Callable[["Download"], None]:
    """What `edge.pull` calls before a download: prints what it is, and asks if it is larger than 1 GB.

    `yes`: the option --yes; None for a command that has no such option. `quiet`: print it only before a question. The
    function raises typer.BadParameter or
    ModelFileError if nobody can answer, and ModelFileError if the answer is no.
    """

    def confirm(download: "Download") -> None:
        from edge.pull import ASK_ABOVE

        asks = download.n_bytes > ASK_ABOVE and not yes
        if asks or not quiet:
            progress_line(
                f"download: {download.hub_id}, {download.quant}, {size(download.n_bytes)} to {download.folder}"
            )
        if not asks:
            return
        if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
            why = "is more than 1 GB, and without a terminal edge cannot ask"
            if yes is None:
                raise ModelFileError(
                    f"{download.name}: the download {why}; run first: edge pull {download.name} --yes"
                )
            raise typer.BadParameter(f"the download {why}: add --yes", param_hint="--yes")
        if not agreed("Download it?"):
            raise ModelFileError(f"{download.name}: nothing was downloaded")

    return confirm


def pulled_model(
    reference: "Reference",
    *,
    offline: bool = False,
    yes: bool | None = None,
    check: Callable[[], object] | None = None,
) -> Path:
    """The file of a model that a command names: from the store, else pulled.

    Before a download, edge prints a line; above 1 GB it asks, unless `yes`. `offline`: take only what is here.
    `check` is called before a download. Raises the errors of `edge.pull.pull`.
    """
    from edge.formats.hub import HubOptions
    from edge.pull import present
    from edge.pull import pull as run_pull

    path = present(reference)
    if path is not None:
        return path
    if check is not None:
        check()
    pulled = run_pull(
        reference, options=HubOptions(offline=offline), confirm=ask_first(yes), say=progress_line
    )
    for warning in pulled.warnings:
        note(warning)
    return pulled.path
