"""The part of huggingface.co that edge uses, as a local HTTP server: lists, small files, LFS files on another server.

Each repository is a folder. A file with one of the endings of LFS has a SHA-256 on the hub and is redirected to a
second server, which answers ranges, as the hub does with its CDN. Faults can be set: a gate, a wrong SHA-256, answers
that end early.
"""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS = (".gguf", ".safetensors")


@dataclass
class LocalHub:
    """A hub. `repositories`: the folder of each hub id. The other fields are its faults and what it was asked for."""

    repositories: dict[str, Path]
    token: str | None = None  # needed to read files
    granted: bool = True  # whether the account of the token has access
    wrong_sha256: set[str] = field(default_factory=set)  # files whose reported SHA-256 is of other content
    claimed: dict[str, int] = field(
        default_factory=dict
    )  # sizes that the list reports instead of the true ones
    cut: list[int] = field(default_factory=list)  # the next answers of the CDN end after this number of bytes
    no_ranges: bool = False
    slow: threading.Event | None = None  # the CDN waits for it before it answers
    asked: list[str] = field(default_factory=list)  # names of the files asked for at the hub
    ranges: list[str | None] = field(default_factory=list)  # the Range header of each request to the CDN
    leaked: list[str] = field(default_factory=list)  # tokens that reached the CDN
    paths: list[str] = field(default_factory=list)  # every request line's target
    commit: str = COMMIT
    url: str = ""
    cdn: str = ""

    def answer(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body of a request to the hub."""
        self.paths.append(path)
        if path.startswith("http://"):  # this server as a proxy
            path = "/" + path.split("/", 3)[3]
        path = path.split("?")[0]
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        hub_id = "/".join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        if hub_id not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        folder = self.repositories[hub_id]
        files = {
            file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()
        }
        if api:
            if rest[:1] == ["revision"] and rest[1] not in ("main", self.commit):
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            siblings = [self._entry(name, file) for name, file in files.items()]
            return (
                200,
                {},
                json.dumps({"id": hub_id, "sha": self.commit, "siblings": siblings}).encode(),
            )
        name = "/".join(rest[2:])
        self.asked.append(name)
        if self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        if not self.granted:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        data = files[name].read_bytes()
        known = {"X-Repo-Commit": self.commit}
        if name.endswith(LFS):
            digest = self._sha256(name, data)
            known |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return 302, {**known, "Location": f"{self.cdn}/{hub_id}/{name}"}, b""
        return 200, {**known, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data

    def _entry(self, name: str, file: Path) -> dict[str, Any]:
        data = file.read_bytes()
        entry: dict[str, Any] = {
            "rfilename": name,
            "size": len(data),
            "blobId": hashlib.sha1(data).hexdigest(),
        }
        if name.endswith(LFS):
            n_bytes = self.claimed.get(name, len(data))
            entry["lfs"] = {"sha256": self._sha256(name, data), "size": n_bytes, "pointerSize": 134}
        return entry

    def _sha256(self, name: str, data: bytes) -> str:
        return hashlib.sha256(data + b"?" if name in self.wrong_sha256 else data).hexdigest()

    def content(self, path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        """The status, headers and body of a request to the CDN."""
        self.ranges.append(headers.get("range"))
        if headers.get("authorization"):
            self.leaked.append(headers["authorization"])
        if self.slow is not None:
            self.slow.wait(60)
        owner, name, rest = path.strip("/").split("/", 2)
        data = (self.repositories[f"{owner}/{name}"] / rest).read_bytes()
        begin = headers.get("range")
        if begin is None or self.no_ranges:
            return 200, {}, data
        first = int(begin.removeprefix("bytes=").removesuffix("-"))
        return 206, {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}, data[first:]


@contextmanager
def local_hub(repositories: dict[str, Path], **faults: Any) -> Iterator[LocalHub]:
    """A running hub with its CDN."""
    hub = LocalHub(repositories, **faults)

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            send(self, *hub.answer(self.path, self.headers))

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Cdn(Hub):
        def do_GET(self) -> None:
            status, headers, body = hub.content(self.path, self.headers)
            keep = hub.cut.pop(0) if hub.cut and self.command == "GET" else None
            send(self, status, headers, body, keep)

        do_HEAD = do_GET

    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Hub, Cdn)]
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        if hub.slow is not None:
            hub.slow.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def send(
    handler: http.server.BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    body: bytes,
    keep: int | None = None,
) -> None:
    """Send an answer; with `keep` only that many bytes of its body, then the connection is closed."""
    handler.send_response(status)
    for key, value in {**headers, "Content-Length": str(len(body))}.items():
        handler.send_header(key, value)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body if keep is None else body[:keep])
    if keep is not None:
        handler.close_connection = True
