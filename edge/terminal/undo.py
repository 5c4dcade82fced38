"""The archive that undoes a change of the work folder: the old state of what changes, with the new state as its base.

`workfolder.compare` reads it as it reads an archive of the sandbox: what is still as the base says becomes as the
entries say.
"""

import os

from edge.errors import SandboxError
from edge.terminal.archive import END, Entry, header
from edge.terminal.opened import folder_of, open_file, open_folder
from edge.terminal.packed import Base, Head, Item, pack_file, rights_of, write_head
from edge.terminal.place import CHANGED
from edge.terminal.sealed import Writer


def write_undo(root: int, before: Base, after: Base, out: Writer) -> None:
    """Write the archive. `before`: what changes or goes, as it is now below the open folder `root`.

    `after`: what comes. Raises SandboxError if something is not as `before` says, OSError if it cannot be read.
    """
    around = {
        "/".join(parts[:end])
        for parts in (path.split("/") for path in (*before, *after))
        for end in range(1, len(parts))
    }
    folders = {path: Item("folder", True) for path in around - set(before) - set(after)}
    write_head(Head(folders | after), out)
    out.write(header(Entry("", "folder")))
    for path in sorted((*folders, *before), key=lambda path: path.split("/")):
        _write_one(root, path, (folders | before)[path], out)
    out.write(END)


def _write_one(root: int, path: str, item: Item, out: Writer) -> None:
    with folder_of(root, path) as (parent, name):
        state = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if item.kind == "folder":
            with open_folder(name, parent) as inner:
                mode = rights_of(inner, state)
            out.write(header(Entry(path, "folder", mode=mode), exact=True))
            return
        if item.kind == "link":
            out.write(header(Entry(path, "link", mtime=int(state.st_mtime), target=item.content)))
            return
        with open_file(name, parent) as file:
            if pack_file(file, path, out, exact=True) != item:
                raise SandboxError(f"{path}: {CHANGED}")
