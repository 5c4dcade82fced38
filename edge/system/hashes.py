"""SHA-256 of files and texts, and the versions of installed packages."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def file_sha256(path: Path | str) -> str | None:
    """The SHA-256 of a regular file in hexadecimal. None if it is another kind of file or cannot be read."""
    path = Path(path)
    try:
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def text_sha256(text: str | None) -> str | None:
    """The SHA-256 of a text in UTF-8, in hexadecimal; None for None."""
    return None if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def package_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
