"""llama.cpp's chat templates, from the llama-cpp-python sdist in build/sdist, where `make test` puts it."""

from pathlib import Path

import pytest
from llama_cpp_sources import MISSING, read_sources


def find_templates() -> dict[str, str]:
    """The templates by name; empty without the sdist."""
    found = read_sources(lambda path: path.startswith("models/templates/") and path.endswith(".jinja"))
    return {Path(path).stem: data.decode("utf-8") for path, data in found}


TEMPLATES = find_templates()
needs_templates = pytest.mark.skipif(not TEMPLATES, reason=MISSING)
