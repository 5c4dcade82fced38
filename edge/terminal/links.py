"""Where a symbolic link of a work folder leads, with each link on its way followed, and none of them opened."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from edge.terminal.repository import hidden

_MOST_STEPS = 200  # names on the way, over all links: Linux follows 40 links


def leads_out(
    path: str, target: str, links: Callable[[str], Collection[str]], *, dot_files: bool
) -> str | None:
    """Why the link at `path` may lead out of the folder, or to a hidden name; None if it stays in it.

    `links`: the targets that a link at a path of the folder has, or may get; none if there is no link. `dot_files`:
    hidden names are allowed.
    """
    begin = tuple(path.split("/")[:-1])
    waiting = [(begin, tuple(target.split("/")) if target else ("..",) * (len(begin) + 1), target)]
    seen = set()
    for _ in range(_MOST_STEPS):
        if not waiting:
            return None
        here, rest, link = waiting.pop()
        if (here, rest) in seen:
            continue
        seen.add((here, rest))
        if link.startswith("/"):
            return _WHY
        if not rest:
            continue
        name, rest = rest[0], rest[1:]
        if name in ("", "."):
            waiting.append((here, rest, ""))
        elif name == "..":
            if not here:
                return _WHY
            waiting.append((here[:-1], rest, ""))
        elif hidden(name) and not dot_files:
            return "it is a link to a name that begins with a dot"
        else:
            waiting.append(((*here, name), rest, ""))
            waiting += [
                (here, (*further.split("/"), *rest), further) for further in links("/".join((*here, name)))
            ]
    return "it is a link through too many others"


_WHY = "it is a link that may leave the folder"


def way_to(path: Path) -> set[Path]:
    """Where a path leads, and each link on its way: who changes one of them changes what the path means."""
    found = set()
    here, rest = Path(os.sep), list(reversed(path.absolute().parts[1:]))
    for _ in range(_MOST_STEPS):
        if not rest:
            break
        name = rest.pop()
        if name == "..":
            here = here.parent
            continue
        try:
            target = Path(os.readlink(here / name))
        except OSError:  # no link
            here /= name
            continue
        found.add(here / name)
        if target.is_absolute():
            here = Path(os.sep)
        rest += reversed([part for part in target.parts if part != os.sep])
    return {*found, here}
