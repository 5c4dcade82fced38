"""`edge bundle` and `edge unbundle`: the same files give the same tar, and a damaged tar leaves no files.

The bundles here have a real model, real rows and results, but no wheels, except edge's own where a test needs it.
tests/airgap/test_air_gap.py installs complete bundles.

.venv/bin/pytest tests/airgap/test_bundle.py
"""

import hashlib
import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.airgap.bundle import bundle, pack
from edge.airgap.manifest import MANIFEST, TOP, Manifest, header, padding, read_manifest, tar_end
from edge.airgap.unbundle import unbundle
from edge.airgap.wheels import Needed, make_wheels, needed
from edge.errors import BundleError, EdgeError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NOTHING = Needed({})


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, tiny_q4: Path, tiny_folder: Path) -> dict[str, Path]:
    """A model, rows and a result, by path in the bundle."""
    from edge.replay.result import step_result, write_result
    from edge.replay.rows import read_rows

    folder = tmp_path_factory.mktemp("sources")
    rows = folder / "rows.jsonl"
    rows.write_bytes(b"".join((tiny_folder / "eval.jsonl").read_bytes().splitlines(keepends=True)[:3]))
    result = folder / "reference result.json"
    steps = [step_result(row, row.ref_raw, prompt_tokens=1, completion_tokens=1) for row in read_rows(rows)]
    write_result(result, {"model": "reference"}, steps)
    return {
        "rows/rows.jsonl": rows,
        "references/reference result.json": result,
        "models/tiny.gguf": tiny_q4,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle.tar"
    pack(out, sources, NOTHING, {})
    return out


def small(path: Path, sources: dict[str, Path]) -> Manifest:
    """A bundle without the model, which tests can change many times."""
    return pack(
        path, {name: file for name, file in sources.items() if not name.startswith("models")}, NOTHING, {}
    ).manifest


def nothing_left(folder: Path, *known: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(known)


def refused(path: Path, *words: str, to: Path | None = None) -> str:
    """The one-line error of a refused bundle, which leaves no files."""
    to = to or path.parent / "target"
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(BundleError) as caught:
        unbundle(path, to, install=False)
    assert sorted(path.parent.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_the_same_files_give_the_same_tar(whole: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    os.utime(sources["rows/rows.jsonl"], (1, 1))
    done = pack(again, dict(reversed(sources.items())), NOTHING, {})
    assert again.read_bytes() == whole.read_bytes()
    assert done.n_bytes == again.stat().st_size
    assert done.sha256 in str(done)
    nothing_left(tmp_path, "again.tar")


def test_any_tar_reads_it(whole: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    subprocess.run(["tar", "xf", whole], cwd=tmp_path, check=True)
    for name, path in sources.items():
        assert (tmp_path / TOP / name).read_bytes() == path.read_bytes()
    with tarfile.open(whole) as archive:
        assert archive.next().name == f"{TOP}/{MANIFEST}"  # type: ignore[union-attr]
        for entry in archive:
            assert entry.isreg() and (entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, "", "")
            assert entry.mtime == 315532800


def test_unbundled_files_are_those_that_went_in(
    whole: Path, sources: dict[str, Path], tmp_path: Path
) -> None:
    done = unbundle(whole, tmp_path / "new" / "target", install=False)
    for name, path in sources.items():
        assert (done.folder / name).read_bytes() == path.read_bytes()
    manifest = json.loads((done.folder / MANIFEST).read_bytes())
    assert [file["path"] for file in manifest["files"]] == [
        "install.sh",
        "requirements.txt",
        "rows/rows.jsonl",
        "references/reference result.json",
        "models/tiny.gguf",
    ]
    for file in manifest["files"]:
        data = (done.folder / file["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["size"], file["sha256"])
    assert "To install it: sh " in str(done)
    nothing_left(tmp_path / "new", "target")


def test_a_long_name_and_a_size_beyond_8_gib_have_a_header() -> None:
    name, size = "models/" + "long name ü " * 14 + ".gguf", 9 << 30
    head = header(name, size)
    with tarfile.open(fileobj=io.BytesIO(head), mode="r:") as archive:
        entry = archive.next()
    assert entry is not None and (entry.name, entry.size) == (f"{TOP}/{name}", size)


def test_a_target_that_is_there_stays(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("full", "file", "link"):
        with pytest.raises(BundleError, match=f"{name}: already exists"):
            unbundle(whole, tmp_path / name, install=False)
    assert (tmp_path / "full" / "file").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    unbundle(whole, tmp_path / "empty", install=False)
    nothing_left(tmp_path, "full", "file", "link", "empty")


def test_what_is_no_bundle(tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as archive:
        archive.add(ROOT / "pyproject.toml", "edge-bundle/manifest.json")
    refused(other, "other.tar", "is not an edge bundle")
    for data in (b"", b"x", bytes(10240), os.urandom(20000)):
        other.write_bytes(data)
        refused(other, "other.tar", "is not an edge bundle")
    refused(tmp_path, f"{tmp_path}: is a folder; give the tar file that edge bundle wrote")
    missing = "none.tar: cannot be read: No such file or directory; give the tar file that edge bundle wrote"
    refused(tmp_path / "none.tar", missing)


def test_each_kind_of_hostile_member_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    """Replace a member of a valid bundle by each other kind of tar entry."""
    path = tmp_path / "bundle.tar"
    manifest = small(path, sources)
    true = path.read_bytes()
    member = next(file for file in manifest.files if file.path == "rows/rows.jsonl")
    at = true.index(header(member.path, member.size))
    end = at + 512 + member.size + len(padding(member.size))

    def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = member.size) -> bytes:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, size
        info.mtime, info.mode = 315532800, 0o644
        return info.tobuf(tarfile.PAX_FORMAT)

    place = f"{TOP}/{member.path}"
    hostile: dict[str, bytes] = {
        "'../evil'": entry("../evil"),
        "'/tmp/evil'": entry("/tmp/evil"),
        "'edge-bundle/rows/../../evil'": entry("edge-bundle/rows/../../evil"),
        "'edge-bundle/rows/unlisted.jsonl'": entry("edge-bundle/rows/unlisted.jsonl"),
        "'edge-bundle/install.sh'": entry("edge-bundle/install.sh"),
        "a symbolic link": entry(place, tarfile.SYMTYPE, "/etc/passwd", 0),
        "a hard link": entry(place, tarfile.LNKTYPE, "/etc/passwd", 0),
        "a device": entry(place, tarfile.CHRTYPE, size=0),
        "a folder": entry(place, tarfile.DIRTYPE, size=0),
        "something else": entry(place, tarfile.FIFOTYPE, size=0),
        "something else,": entry("edge-bundle/" + "x" * 5000),  # a pax header
        f"{member.size + 1:,} bytes": entry(place, size=member.size + 1),
        f"{7 << 30:,} bytes": entry(place, size=7 << 30),
        "no valid tar header": b"\xff" * 512,
        "valid tar header in": bytes(512),
    }
    for word, head in hostile.items():
        path.write_bytes(true[:at] + head[:512] + true[at + 512 :])
        assert f"in the place of {place}" in refused(path, word)
    # The same with the complete member and the right total size, and a link before a later member.
    rest = true[end:]
    for head in (entry(place, tarfile.SYMTYPE, "/tmp", 0), entry(place), b""):
        path.write_bytes((true[:at] + head + rest).ljust(len(true), b"\0"))
        refused(path)


def test_more_and_less_than_the_manifest_says(sources: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    small(path, sources)
    true = path.read_bytes()
    for cut in (1, 512, 5000, len(true) // 2, len(true) - 100, len(true) - 700):
        path.write_bytes(true[:-cut])
        refused(path, "truncated" if len(true) - cut > 512 else "is not an edge bundle")
    for more in (b"x", bytes(512), true):
        path.write_bytes(true + more)
        refused(path, "has bytes that its manifest does not list")


def test_members_in_another_order(sources: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    manifest = small(path, sources)
    true = path.read_bytes()
    blocks = {}
    for member in manifest.files:
        at = true.index(header(member.path, member.size))
        blocks[member.path] = true[at : at + 512 + member.size + len(padding(member.size))]
    joined = b"".join(blocks.values())
    assert joined in true
    path.write_bytes(true.replace(joined, b"".join(reversed(blocks.values()))))
    refused(path, "in the place of edge-bundle/install.sh")


def with_manifest(true: bytes, manifest: Manifest, change: Callable[[dict[str, object]], object]) -> bytes:
    """The bundle with a changed manifest and the same files."""
    old = manifest.to_bytes()
    begin = len(header(MANIFEST, len(old))) + len(old) + len(padding(len(old)))
    fields = json.loads(old)
    change(fields)
    new = json.dumps(fields, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    body = header(MANIFEST, len(new)) + new + padding(len(new)) + true[begin:].rstrip(b"\0")
    body += padding(len(body))
    return body + tar_end(len(body))


@pytest.mark.parametrize(
    "place",
    [
        "../evil", "/tmp/evil", "rows/../../evil", "rows/../evil", "rows//x", "rows/", "", ".", "..", "wheels",
        "evil", "venv/bin/python", "rows/a/b", "rows/.hidden", "rows/-x", "rows/a\nb", "rows/a\x00b", "rows/\u202eb",
        "rows/\\b", "rows/x:y", "rows/x.", "rows/" + "x" * 250, "rows/\ud800", "MANIFEST.JSON", "manifest.json",
        "Rows/x", None, 7, ["rows/x"], {"a": 1},
    ],
)  # fmt: skip
def test_places_that_a_manifest_cannot_name(place: object, sources: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    manifest = small(path, sources)

    def change(fields: dict[str, object]) -> None:
        fields["files"][2]["path"] = place  # type: ignore[index]

    path.write_bytes(with_manifest(path.read_bytes(), manifest, change))
    refused(path, "its manifest is damaged")


def test_manifests_that_are_none(sources: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar"
    manifest = small(path, sources)
    true = path.read_bytes()
    changes: list[tuple[str, Callable[[dict[str, object]], object]]] = [
        ("duplicate path", lambda fields: fields["files"].append(fields["files"][0])),  # type: ignore[attr-defined]
        (
            "duplicate path",
            lambda fields: fields["files"].append({**fields["files"][2], "path": "rows/ROWS.jsonl"}),
        ),  # type: ignore[attr-defined, index]
        ("install.sh is missing", lambda fields: fields["files"].pop(0)),  # type: ignore[attr-defined]
        ("is not a SHA-256", lambda fields: fields["files"][0].update(sha256="0" * 63)),  # type: ignore[index]
        ("is not a size", lambda fields: fields["files"][0].update(size=-1)),  # type: ignore[index]
        ("is not a size", lambda fields: fields["files"][0].update(size=1 << 70)),  # type: ignore[index]
        ("is not a size", lambda fields: fields["files"][0].update(size=True)),  # type: ignore[index]
        ("is not a size", lambda fields: fields["files"][0].update(size=1.5)),  # type: ignore[index]
        ("damaged", lambda fields: fields["files"][0].update(mode=0o4755)),  # type: ignore[index]
        ("damaged", lambda fields: fields.update(extra=1)),
        ("lacks 'machine'", lambda fields: fields.pop("machine")),
        ("damaged", lambda fields: fields.update(files={})),
        ("damaged", lambda fields: fields.update(files=[1])),
        ("is not a string", lambda fields: fields.update(packages={"numpy": 1})),
        ("is not an edge bundle", lambda fields: fields.update(format="tar")),
        ("format 2", lambda fields: fields.update(version=2)),
        ("is truncated", lambda fields: fields["files"][2].update(size=1 << 49)),  # type: ignore[index]
    ]
    for word, change in changes:
        path.write_bytes(with_manifest(true, manifest, change))
        refused(path, word)
    path.write_bytes(with_manifest(true, manifest, lambda fields: None))
    assert path.read_bytes() == true  # so the refusals above are due to the changes
    deep = b"[" * 100_000
    path.write_bytes(header(MANIFEST, len(deep)) + deep + padding(len(deep)))
    refused(path, "its manifest is damaged")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 4))
def test_no_flipped_bit_gets_through(
    tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path], seed: int, count: int
) -> None:
    """Flip bits anywhere in a bundle: edge finds each one, because every byte is determined."""
    folder = tmp_path_factory.mktemp("flip")
    path = folder / "bundle.tar"
    small(path, sources)
    data = bytearray(path.read_bytes())
    chance = random.Random(seed)
    for place in chance.sample(range(len(data)), count):
        data[place] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    refused(path)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_no_text_breaks_the_manifest(data: bytes) -> None:
    with pytest.raises(BundleError):
        read_manifest(data, "x")


def test_a_file_that_changes_while_it_is_bundled(sources: dict[str, Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(sources["rows/rows.jsonl"].read_bytes())
    size = rows.stat().st_size
    for data in (b"x" * size, b"x", b"x" * 3 * size):
        rows.write_bytes(sources["rows/rows.jsonl"].read_bytes())

        def change(done: int, total: int, data: bytes = data) -> None:
            if done == size:  # the first read is complete
                rows.write_bytes(data)

        with pytest.raises(BundleError, match="changed while edge bundled it"):
            pack(tmp_path / "out.tar", {"rows/rows.jsonl": rows}, NOTHING, {}, change)
        nothing_left(tmp_path, "rows.jsonl")


def limited(tmp_path: Path, code: str, *arguments: object) -> str:
    """The output of a process that can write at most 2 MB to a file, as if the disk were full."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_a_full_disk_leaves_nothing(whole: Path, sources: dict[str, Path], tmp_path: Path) -> None:
    out = limited(
        tmp_path,
        "import sys; from pathlib import Path; from edge.airgap.bundle import pack\n"
        "from edge.errors import BundleError\n"
        "from edge.airgap.wheels import Needed\n"
        "try: pack(Path(sys.argv[1]), {'models/m.gguf': Path(sys.argv[2])}, Needed({}), {})\n"
        "except BundleError as error: print(error)",
        tmp_path / "out.tar",
        sources["models/tiny.gguf"],
    )
    assert out.startswith(f"{tmp_path / 'out.tar'}: cannot be written: ")
    nothing_left(tmp_path)
    out = limited(
        tmp_path,
        "import sys; from pathlib import Path; from edge.airgap.unbundle import unbundle\n"
        "from edge.errors import BundleError\n"
        "try: unbundle(Path(sys.argv[1]), Path(sys.argv[2]), install=False)\n"
        "except BundleError as error: print(error)",
        whole,
        tmp_path / "target",
    )
    assert out.count("\n") == 1 and "File too large" in out
    nothing_left(tmp_path)


def test_what_cannot_be_bundled(
    tmp_path: Path, sources: dict[str, Path], tiny_q4: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(word: str, models: list[Path], out: Path = tmp_path / "out.tar", **more: object) -> None:
        with pytest.raises(EdgeError, match=word):
            bundle(models, out, wheels=tmp_path / "wheels", **more)  # type: ignore[arg-type]
        assert not (tmp_path / "wheels").exists()  # refused before edge builds anything

    rows = sources["rows/rows.jsonl"]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_q4.read_bytes()[:10_000])
    twice = tmp_path / "twice" / tiny_q4.name
    twice.parent.mkdir()
    twice.write_bytes(tiny_q4.read_bytes())
    hidden = tmp_path / ".hidden.gguf"
    hidden.write_bytes(tiny_q4.read_bytes())
    fails("needs a model", [])
    fails("broken.gguf", [broken])
    fails("none.gguf", [tmp_path / "none.gguf"])
    fails("is not a file", [tmp_path])
    fails("rename one of them", [tiny_q4, twice])
    fails("rename the file", [hidden])
    fails("rows.jsonl", [rows])
    fails("tiny", [tiny_q4], rows=[tiny_q4])
    with monkeypatch.context() as full:
        full.setattr("edge.system.places.free_disk", lambda path: 1000)
        fails("0.0 MB free on this disk, 4.2 MB needed; free some space", [tiny_q4])
    fails("rows.jsonl", [tiny_q4], references=[rows])
    fails("is an input of this command", [twice], out=twice)
    fails("is a folder", [tiny_q4], out=tmp_path)
    fails("is not a regular file", [tiny_q4], out=Path("/dev/null"))
    assert twice.read_bytes() == tiny_q4.read_bytes()


def test_the_wheels_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each reason: no network, no compiler, llama.cpp for only this processor."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")  # no server listens there
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    pytest.importorskip("hatchling", reason="hatchling is not installed (make test installs it)")
    said: list[str] = []
    with pytest.raises(BundleError, match=r"no network, and not in .*wheels: connect, or give a folder"):
        make_wheels(tmp_path / "wheels", said.append)
    assert said and said[0].startswith("fetching ")
    (own,) = (tmp_path / "wheels").iterdir()
    assert own.name.startswith("terminal_edge-")
    if sys.platform != "linux":
        return
    version = subprocess.run(
        [sys.executable, "-c", "import llama_cpp; print(llama_cpp.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    native = tmp_path / "wheels" / f"llama_cpp_python-{version}-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(native, "w") as archive:
        archive.writestr("llama_cpp/lib/libggml-cpu.so", b"")
    with pytest.raises(BundleError, match="is built for one processor"):
        make_wheels(tmp_path / "wheels", said.append)


def test_no_compiler_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge.airgap.wheels import check_compiler

    check_compiler_path = tmp_path / "bin"
    check_compiler_path.mkdir()
    monkeypatch.setenv("PATH", str(check_compiler_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BundleError, match="cc: no such compiler"):
        check_compiler()
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(BundleError, match="no-such-compiler: no such compiler"):
        check_compiler()


def test_an_installed_edge_is_put_together_again(tmp_path: Path) -> None:
    """The installed wheel of a checkout gives the same wheel again. A changed file is refused."""
    pytest.importorskip("hatchling", reason="hatchling is not installed (make test installs it)")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    made, site, again = tmp_path / "made", tmp_path / "site", tmp_path / "again"
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", made, ROOT], check=True)
    (first,) = made.iterdir()
    packages = needed(first).packages.keys()  # those of `edge serve` too, and none that only tests need
    assert {"h11", "prometheus-client", "starlette", "uvicorn"} <= packages and not {
        "torch",
        "pytest",
    } & packages
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-compile", "--target", site, first], check=True)
    code = (
        "import sys; from pathlib import Path\n"
        "from edge.airgap.wheels import make_edge; from edge.errors import EdgeError\n"
        "try: print(make_edge(Path(sys.argv[1])))\n"
        "except EdgeError as error: print(error)"
    )

    def run() -> str:
        again.mkdir(exist_ok=True)
        env = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code, again],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    second = Path(run())
    assert second.parent == again and second.name == first.name
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        assert two.testzip() is None
        assert sorted(one.namelist()) == sorted(two.namelist())
        for name in one.namelist():
            if not name.endswith("RECORD"):
                assert one.read(name) == two.read(name), name
        record = next(name for name in one.namelist() if name.endswith("RECORD"))
        assert sorted(one.read(record).split()) == sorted(two.read(record).split())
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--no-index", "--target", tmp_path / "b", second], check=True
    )
    second.unlink()
    with (site / "edge" / "errors.py").open("a") as file:
        file.write("\n")
    assert "errors.py: changed after its installation" in run()
    assert not any(again.iterdir())
