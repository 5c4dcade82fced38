"""Which GGUF of a repository is meant: by its name or by its type, with all of its parts."""

import re

from edge.errors import ModelFileError
from edge.formats.gguf_names import before_type, has_type, part_of, stem, whole_name
from edge.formats.hub import Repository

# GGUFs of a repository that are not a separate model.
_NO_MODEL = re.compile(r"(^|[-._])(mmproj|imatrix)([-._]|$)", re.IGNORECASE)
_DRAFT = re.compile(r"(^|[-._])draft([-._]|$)", re.IGNORECASE)  # a small model that only helps another one


def gguf_files(
    repository: Repository, wanted: str, file: str | None = None, *, named: bool, exact: bool = False
) -> list[str] | None:
    """The GGUF to download, all parts of it; None if the repository is one of safetensors.

    `wanted`: its type; `named`: whether the user named it. `file`: the name of the GGUF, whatever its type.
    `exact`: the list is that of the cache, so only a file that cannot be another model of the repository will do.
    Raises ModelFileError if the repository does not hold the wanted file or type.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(repository.files):
        if name.endswith(".gguf") and not _NO_MODEL.search(stem(name)):
            groups.setdefault(whole_name(name), []).append(name)
    if file is not None:
        names = groups.get(whole_name(file))
        if names is None:
            raise ModelFileError(f"{repository.hub_id}: holds no {file}{_holds(groups)}")
        return _whole(repository, names)
    chosen = _of_type(repository, groups, wanted)
    if chosen is not None and exact and not _has_name_of(repository, chosen):
        return None
    if chosen is not None:
        return _whole(repository, groups[chosen])
    if any(name.endswith(".safetensors") for name in repository.files):
        return None
    if len(groups) == 1 and not named and not exact:
        return _whole(repository, next(iter(groups.values())))
    if repository.absent is not None:
        raise repository.absent
    if not groups:
        raise ModelFileError(f"{repository.hub_id}: holds no GGUF and no safetensors; edge cannot use it")
    raise ModelFileError(f"{repository.hub_id}: holds no GGUF of type {wanted}{_holds(groups)}")


def _of_type(repository: Repository, groups: dict[str, list[str]], quant: str) -> str | None:
    """The GGUF of a type; None if there is none. Raises ModelFileError if several models have that type."""
    found = [name for name in groups if has_type(name, quant)]
    found = [name for name in found if not _DRAFT.search(stem(name))] or found
    if len({stem(name).lower() for name in found}) > 1:
        raise ModelFileError(
            f"{repository.hub_id}: holds several GGUFs of type {quant}{_holds({name: [] for name in found})}"
        )
    return min(found, key=lambda name: (len(name), name), default=None)


def _has_name_of(repository: Repository, name: str) -> bool:
    """Whether a GGUF is called as its repository, so that it is the model of the repository and no other one."""

    def bare(text: str) -> str:
        return re.sub(r"[\W_]", "", text).lower()

    return bare(before_type(name)) in bare(repository.hub_id.split("/")[1])


def _holds(groups: dict[str, list[str]]) -> str:
    names = sorted(groups)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"; it holds {', '.join(names[:12])}{more}: give owner/name/FILE.gguf" if names else ""


def _whole(repository: Repository, names: list[str]) -> list[str]:
    """The parts of a GGUF. Raises ModelFileError if the repository lacks one."""
    part = part_of(names[0])
    if part is not None and len(names) != part[1]:
        raise repository.absent or ModelFileError(
            f"{repository.hub_id}: holds {len(names)} of the {part[1]} parts of {whole_name(names[0])}"
        )
    return names
