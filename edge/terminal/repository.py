"""Git repositories in a work folder: git runs programs that their files name, whatever the folder is called.

git takes a folder for a repository if it has HEAD with `objects` and `refs`, or HEAD with `commondir`
(gitrepository-layout(5)). Names count without case, because some file systems ignore it.
"""

import re
import unicodedata
from collections.abc import Callable, Collection
from functools import lru_cache

_MAKES = (frozenset({"head", "objects", "refs"}), frozenset({"head", "commondir"}))
_READ = frozenset(
    "head objects refs commondir config config.worktree gitdir packed-refs reftable hooks info index modules worktrees "
    "logs shallow branches remotes description fetch_head orig_head merge_head rebase-merge rebase-apply "
    "sequencer alternates attributes exclude".split()
)
"""What git reads in a repository."""
_SHORT = re.compile(r"git~[0-9]+")  # .git for NTFS, under its second name


@lru_cache(1 << 16)
def plain(name: str) -> str:
    """A name as file systems compare it that ignore case, invisible characters, and blanks at its end."""
    seen = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
    return seen.casefold().rstrip(" ")


def hidden(name: str) -> bool:
    """Whether a name begins with a dot, or is one that a file system may take for `.git`."""
    return plain(name).startswith(".") or _SHORT.fullmatch(plain(name)) is not None


class Repositories:
    """Tells which changes would make a folder a git repository, or would change one.

    `paths`: all that is in the folder, before and after. `listed`: the names in a folder of the user, by its path.
    """

    def __init__(self, paths: Collection[str], listed: Callable[[str], Collection[str]]) -> None:
        self._names: dict[str, set[str]] = {}
        self._spelled: dict[str, set[str]] = {}
        self._listed = listed
        self._known: dict[str, bool] = {}
        for path in paths:
            parent, _, name = path.rpartition("/")
            folder = _plain_path(parent)
            self._names.setdefault(folder, set()).add(plain(name))
            self._spelled.setdefault(folder, set()).add(parent)

    def part(self, path: str) -> str | None:
        """The part of a path that git reads in a repository; None if the path is in no repository."""
        parts = path.split("/")
        for end, name in enumerate(parts):
            if plain(name) in _READ and self._is_one("/".join(parts[:end])):
                return "/".join(parts[: end + 1])
        return None

    def _is_one(self, folder: str) -> bool:
        key = _plain_path(folder)
        if key not in self._known:
            names = set(self._names.get(key, ()))
            for spelled in {folder, *self._spelled.get(key, ())}:
                names |= {plain(name) for name in self._listed(spelled)}
            self._known[key] = any(needed <= names for needed in _MAKES)
        return self._known[key]


def _plain_path(path: str) -> str:
    return "/".join(map(plain, path.split("/")))
