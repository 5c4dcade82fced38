"""Which package indexes the user has: the settings of pip (variables and files) and of uv (variables).

edge reads them itself, because pip need not be installed. Sources: pip's documentation of its configuration, and the
list of uv's environment variables.
"""

import configparser
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.errors import PackageError

PYPI = "https://pypi.org/simple"
_SECTIONS = ("global", "download", "install")  # of pip's files, in the order in which a later one wins
_TRUE, _FALSE = ("1", "true", "t", "yes", "y", "on"), ("0", "false", "f", "no", "n", "off", "")


@dataclass(frozen=True)
class Indexes:
    """Where a package can come from.

    `indexes`: simple indexes, addresses or folders. `links`: pages or folders that hold or list wheels, and wheels.
    `proxy`: None for that of the environment. `cert`: a file of certificates; None for the usual ones. `trusted`:
    hosts, also as host:port, whose certificate is not checked.
    """

    indexes: tuple[str, ...] = (PYPI,)
    links: tuple[str, ...] = ()
    proxy: str | None = None
    cert: str | None = None
    trusted: frozenset[str] = frozenset()


def user_indexes() -> Indexes:
    """The user's indexes; pypi.org where neither pip nor uv has another first index. Raises PackageError."""
    pip = _pip_settings()
    uv = {name: _words(os.environ.get(f"UV_{name}", "")) for name in ("DEFAULT_INDEX", "INDEX_URL", "INDEX")}
    first = _words(pip.get("index-url", "")) + (uv["DEFAULT_INDEX"] or uv["INDEX_URL"])
    more = (
        _words(pip.get("extra-index-url", ""))
        + uv["INDEX"]
        + _words(os.environ.get("UV_EXTRA_INDEX_URL", ""))
    )
    indexes = [] if _no_index(pip) else [_address(text) for text in (*(first or [PYPI]), *more)]
    links = _words(pip.get("find-links", ""))
    links += [text.strip() for text in os.environ.get("UV_FIND_LINKS", "").split(",") if text.strip()]
    certs = (pip.get("cert"), *map(os.environ.get, ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")))
    cert = next(filter(None, certs), None)
    return Indexes(
        tuple(dict.fromkeys(indexes)),
        tuple(dict.fromkeys(links)),
        pip.get("proxy") or None,
        os.path.expanduser(cert) if cert else None,
        frozenset(_words(pip.get("trusted-host", ""))),
    )


def _pip_settings() -> dict[str, str]:
    """pip's settings by option name: those of its files, then the variables PIP_*."""
    found: dict[str, str] = {}
    for path in _pip_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            reason = " ".join(str(error).split())
            raise PackageError(f"{path}: pip's settings cannot be read: {reason}; correct the file") from None
        for section in _SECTIONS:
            if parser.has_section(section):
                found |= {name.replace("_", "-").lower(): value for name, value in parser.items(section)}
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            found[name[4:].replace("_", "-").lower()] = value
    return found


def _pip_files() -> Iterator[Path]:
    """pip's files of settings, in the order in which a later one wins. They may not exist."""
    own = os.environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:  # pip's way to use no file at all
        return
    home, users = Path(os.path.expanduser("~")), not (own and os.path.exists(own))
    if sys.platform == "win32":
        yield Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "pip" / "pip.ini"
        if users:
            yield home / "pip" / "pip.ini"
            yield Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming") / "pip" / "pip.ini"
        yield Path(sys.prefix) / "pip.ini"
    else:
        user = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        if sys.platform == "darwin":
            yield Path("/Library/Application Support/pip/pip.conf")
            support = home / "Library" / "Application Support"
            user = support if (support / "pip").is_dir() else home / ".config"
        else:
            for folder in reversed((os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)):
                yield Path(folder) / "pip" / "pip.conf"
            yield Path("/etc/pip.conf")
        if users:  # pip leaves them out if the variable names an existing file
            yield home / ".pip" / "pip.conf"
            yield user / "pip" / "pip.conf"
        yield Path(sys.prefix) / "pip.conf"
    if own:
        yield Path(own)


def _no_index(pip: dict[str, str]) -> bool:
    text = pip.get("no-index", "").strip().lower()
    if text not in (*_TRUE, *_FALSE):
        raise PackageError(f"pip's setting no-index is {text[:40]!r}; give true or false")
    return text in _TRUE


def _words(text: str) -> list[str]:
    return text.split()


def _address(text: str) -> str:
    """An index without the name that uv allows before it: name=https://…"""
    name, equals, rest = text.partition("=")
    return rest if equals and "/" not in name and ":" not in name else text
