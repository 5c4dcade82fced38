"""llama.cpp's chat templates, from the llama-cpp-python sdist in build/sdist, where `make test` puts it."""

import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def find_templates() -> dict[str, str]:
    """The templates by name; empty without the sdist."""
    templates = {}
    for sdist in sorted((ROOT / "build" / "sdist").glob("llama_cpp_python-*.tar.gz"))[-1:]:
        with tarfile.open(sdist) as archive:
            for member in archive:
                if "/vendor/llama.cpp/models/templates/" in member.name and member.name.endswith(".jinja"):
                    file = archive.extractfile(member)
                    assert file is not None
                    templates[Path(member.name).stem] = file.read().decode("utf-8")
    return templates


TEMPLATES = find_templates()
needs_templates = pytest.mark.skipif(
    not TEMPLATES, reason="there is no llama-cpp-python sdist in build/sdist (make test fetches it)"
)
