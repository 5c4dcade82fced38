"""The commands `edge models` and its sub-commands. They import heavy modules only when they run."""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.cli.command import App
from edge.cli.common import agreed, echo_json, is_terminal, note, show, table
from edge.errors import EdgeError, ModelFileError
from edge.replay.known import KnownModel, known_models
from edge.system.paths import DEFAULT_NAME
from edge.system.store import local_files, model_name, named_file, store_files, store_folder
from edge.system.text import counted, did_you_mean, printable, size

if TYPE_CHECKING:
    from edge.formats.models import FoundModel
    from edge.llama.states import StoredState

_VERSION = 1  # of the JSON that --json prints
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

models_app = App(help="List, find and remove models.", rich_markup_mode=None, add_completion=False)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the models in the model store and in ./models; find and remove them."""
    if context.invoked_subcommand is None:
        list_models(as_json)


@models_app.command(name="list")
def list_models(as_json: Json = False) -> None:
    """List the models, as edge models does."""
    from edge.formats.models import default_choice, found_models

    stored, local = list(found_models(store_files())), list(found_models(local_files()))
    choice = default_choice()
    if as_json:
        found = {
            "version": _VERSION,
            "store": str(store_folder()),
            "default": None if choice.path is None else str(choice.path),
            "models": [_facts(model, "store") for model in stored]
            + [_facts(model, "local") for model in local],
        }
        echo_json(json.dumps(found, indent=2, ensure_ascii=False))
        return
    _print_models(stored)
    total = sum(model.n_bytes for model in stored)
    what = f"{size(total)} in " if stored else "No models in "
    show(f"{what}{printable(str(store_folder()))}")
    if local:
        typer.echo("\nIn ./models:")
        _print_models(local)
    if choice.path is not None:
        in_store = choice.path in store_files()
        shown = model_name(choice.path) if in_store else str(choice.path)
        show(f"\nDefault ({printable(choice.why)}):\n  {printable(shown)}")
    elif not stored:
        show("To add one: edge pull NAME or edge convert SOURCE. Known models: edge models known")
    _print_states()


def _print_states() -> None:
    """How much the prompt states take, if there are any."""
    from edge.llama.states import states_folder, stored_files

    if files := stored_files(states_folder()):
        n_bytes = sum(file.n_bytes for file in files)
        show(f"\nPrompt states: {len(files)}, {size(n_bytes)}; see edge models states")


@models_app.command()
def known(as_json: Json = False) -> None:
    """List the models that edge knows by name."""
    if as_json:
        found = [_known_facts(model) for model in known_models()]
        echo_json(json.dumps({"version": _VERSION, "models": found}, indent=2, ensure_ascii=False))
        return
    table(["known model", "type", "context", "memory", "F1", "hub id"], known_rows())


@models_app.command()
def path(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a model; edge models lists them.")],
    as_json: Json = False,
) -> None:
    """Print the path of a model."""
    found = _named(name, [*local_files(), *store_files()], "./models or ").absolute()
    if as_json:
        fields = {"version": _VERSION, "name": model_name(found), "path": str(found)}
        echo_json(json.dumps(fields, indent=2, ensure_ascii=False))
    else:
        typer.echo(found)


@models_app.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names of models in the model store.")],
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask. Needed if there is no terminal.")
    ] = False,
) -> None:
    """Remove models from the model store. If a model is a link, edge removes only the link."""
    from edge.formats.gguf_names import parts
    from edge.formats.models import examine

    stored = store_files()
    chosen = [examine(path) for path in dict.fromkeys(_named(name, stored, exact=True) for name in names)]
    files = [
        file
        for model in chosen
        for file in (parts(model.path, model.file.parts) if model.file else [model.path])
    ]
    if not yes:
        if not is_terminal(sys.stdin):
            raise typer.BadParameter(
                "this is not a terminal, so edge cannot ask: add --yes", param_hint="--yes"
            )
        total = size(sum(model.n_bytes for model in chosen))
        shown = ", ".join(printable(model_name(model.path)) for model in chosen)
        if not agreed(f"Remove {shown} ({total})?"):
            raise typer.Exit(1)
    for file in files:
        _remove(file)


@models_app.command()
def states(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of them.")] = False,
    as_json: Json = False,
) -> None:
    """Show the prompt states that edge keeps on disk, or remove them.

    The tokens of a state, and so the text of a prompt, can be read from its file. Only you can open it.
    """
    from edge.llama.states import clear as clear_states
    from edge.llama.states import states_folder, stored_files

    folder = states_folder()
    if clear:
        try:
            count, n_bytes = clear_states(folder)
        except OSError as error:
            raise EdgeError(f"{folder}: cannot be cleared: {error.strerror or error}") from None
        show(f"removed {counted(count, 'state')} ({size(n_bytes)}) from {printable(str(folder))}")
        return
    files = sorted(stored_files(folder), key=lambda file: -file.used)
    if as_json:
        rows = [{"path": str(file.path), **_state_facts(file)} for file in files]
        found = {"version": _VERSION, "folder": str(folder), "states": rows}
        echo_json(json.dumps(found, indent=2, ensure_ascii=False))
        return
    _print_state_files(files)
    total = size(sum(file.n_bytes for file in files))
    show(f"{total if files else 'No states'} in {printable(str(folder))}")


def _state_facts(file: "StoredState") -> dict[str, Any]:
    """One state for --json. `used`: ISO 8601 in UTC."""
    return {
        "model": file.head["model"],
        "kind": file.head["kind"],
        "tokens": file.head["tokens"],
        "bytes": file.n_bytes,
        "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(file.used)),
    }


def _print_state_files(files: "list[StoredState]") -> None:
    rows = [
        (
            printable(file.head["model"]),
            file.head["kind"],
            f"{file.head['tokens']:,}",
            size(file.n_bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(file.used)),
        )
        for file in files
    ]
    if rows:
        table(["model", "kind", "tokens", "size", "last used"], rows)


def _remove(file: Path) -> None:
    """Remove one file or link of the store and print what happened. Raises ModelFileError."""
    target = file.resolve() if file.is_symlink() else None
    try:
        n_bytes = file.stat().st_size if target is None else 0
        file.unlink()
    except OSError as error:
        raise ModelFileError(f"{file}: cannot be removed: {error.strerror or error}") from None
    shown = printable(str(file))
    if target is None:
        typer.echo(f"removed {shown} ({size(n_bytes)})")
    elif target.exists():
        typer.echo(f"removed the link {shown}; its data stays in {printable(str(target))}")
    else:
        typer.echo(f"removed the link {shown}; its data was already gone")
    matrix = file.with_name(file.name + ".imatrix")
    if matrix.exists():
        note(f"{matrix}: the importance matrix stays")


def _named(name: str, files: list[Path], places: str = "", *, exact: bool = False) -> Path:
    """The file called `name` among these, which are in `places` and the store. Raises ModelFileError with a hint.

    `exact`: a name in another case is another name.
    """
    path = named_file(name)
    if exact and path is not None and model_name(path) != name.removesuffix(".gguf"):
        path = None
    by_name = {model_name(file): file for file in reversed(files)}
    if path not in files:
        path = by_name.get(name.removesuffix(".gguf"))
    if path is not None:
        return path
    file = Path(os.path.expanduser(name))
    if file.name != name:
        stored = next((own for own in files if own.absolute() == file.absolute()), None)
        hint = f"give {model_name(stored)}" if stored else "give a name that `edge models` lists"
        raise ModelFileError(f"{name}: is a path, not the name of a model; {hint}")
    local = next((own for own in local_files() if model_name(own) == name.removesuffix(".gguf")), None)
    if local is not None:
        raise ModelFileError(
            f"{name}: is in ./models, not in the model store; remove the file {local} yourself"
        )
    hint = did_you_mean(name, by_name) or "`edge models` lists the names"
    raise ModelFileError(f"{name}: no model of this name in {places}{store_folder()}; {hint}")


def _print_models(models: "list[FoundModel]") -> None:
    rows: list[tuple[str, ...]] = []
    for model in models:
        name, file = printable(model_name(model.path)), model.file
        if model.adapter is not None:
            what = f"adapter ({printable(model.adapter.architecture)})"
            rows.append((name, size(model.n_bytes), model.adapter.tensors[0].type, what, _day(model.path)))
        elif file is not None:
            rows.append(
                (name, size(model.n_bytes), file.file_type, printable(file.architecture), _day(model.path))
            )
        else:
            rows.append((name, size(model.n_bytes), "-", "-", _day(model.path)))
    if rows:
        table(["name", "size", "type", "model", "date"], rows)
    for model in models:
        if not model.usable and model.adapter is None:
            show(f"not usable: {printable(model_name(model.path))}: {printable(model.problem)}")


def _facts(model: "FoundModel", place: str) -> dict[str, Any]:
    """One model for --json. `bytes`: of all its parts; `date`: ISO 8601 in UTC."""
    file, path = model.file, model.path
    return {
        "name": model_name(path),
        "path": str(path.absolute()),
        "link_to": str(path.resolve()) if path.is_symlink() else None,
        "place": place,
        "usable": model.usable,
        "problem": model.problem or None,
        "adapter": model.adapter is not None,
        "bytes": model.n_bytes,
        "type": file.file_type if file else None,
        "architecture": file.architecture if file else None,
        "model": file.name if file else None,
        "parameters": file.n_params if file else None,
        "context": file.context_length if file else None,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_time(path))),
    }


def _time(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # removed by another process since
        return 0.0


def _day(path: Path) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(_time(path)))


def _known_facts(model: KnownModel) -> dict[str, Any]:
    return {
        "name": model.path.stem,
        "hub_id": model.hub_id or None,
        "gguf_id": model.gguf_id or None,
        "licence": model.licence or None,
        "description": model.description,
        "type": model.default_quant,
        "context": model.context,
        "memory_gb": model.memory_gb,
        "reference": model.reference or None,
    }


def _origin(model: KnownModel) -> str:
    """Where a model comes from that has no repository on the hub."""
    return "(edge pull default)" if model.path.stem == DEFAULT_NAME else "(included in edge)"


def known_rows() -> list[tuple[str, ...]]:
    """The known models: name, quantization type, default context, memory, published F1, hub id."""
    rows: list[tuple[str, ...]] = []
    for model in known_models():
        f1 = model.reference.get("avg_command_f1")
        rows.append(
            (
                model.path.stem,
                model.default_quant,
                f"{model.context:,}",
                "-" if model.memory_gb is None else f"{model.memory_gb:g} GB",
                "-" if f1 is None else f"{f1:.4f}",
                model.gguf_id or model.hub_id or _origin(model),
            )
        )
    return rows
