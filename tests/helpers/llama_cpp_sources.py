"""The sources of the installed llama.cpp: the llama-cpp-python sdist in build/sdist, where `make test` puts it."""

import tarfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

SDIST = (
    Path(__file__).resolve().parents[2]
    / "build"
    / "sdist"
    / f"llama_cpp_python-{version('llama-cpp-python')}.tar.gz"
)
MISSING = "there is no sdist of the installed llama-cpp-python in build/sdist (make test fetches it)"


def read_sources(wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path and content of each wanted file; paths begin in the folder of llama.cpp. Nothing without the sdist."""
    if not SDIST.is_file():
        return
    with tarfile.open(SDIST) as archive:
        for member in archive:
            inner = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and wanted(inner):
                file = archive.extractfile(member)
                assert file is not None
                yield inner, file.read()


def write_sources(folder: Path, wanted: Callable[[str], bool]) -> None:
    """Write the wanted files below `folder`, at their paths in llama.cpp."""
    for inner, data in read_sources(wanted):
        (folder / inner).parent.mkdir(parents=True, exist_ok=True)
        (folder / inner).write_bytes(data)
