"""Names of models and `edge pull`, against a hub on this machine: resume, SHA-256, gates, parts, offline, questions.

.venv/bin/pytest tests/test_pull.py
"""

import hashlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import command_line
import pytest
from local_hub import COMMIT, LocalHub, local_hub

from edge.errors import ModelFileError
from edge.formats.hub import is_safe
from edge.names import Reference, resolve
from edge.replay.known import known_models

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NAME = "Tiny-Q4_K_M.gguf"
GGUF = "org/Tiny-GGUF"


@pytest.fixture
def repository(tmp_path: Path, tiny_q4: Path) -> Path:
    """The folder of a repository with one GGUF."""
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(tiny_q4, folder / NAME)
    (folder / "README.md").write_text("a card")
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., LocalHub]]:
    with ExitStack() as stack:
        yield lambda repositories, **faults: stack.enter_context(local_hub(repositories, **faults))


class Machine:
    """The folders of one user, and the command line in them."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.work = folder / "work"
        self.store = folder / "store"
        for path in (self.home, self.work):
            path.mkdir()

    def environment(self, hub: LocalHub | None, **more: str) -> dict[str, str]:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "EDGE_", "XDG_"))
        }
        return kept | {
            "HOME": str(self.home),
            "EDGE_CACHE": str(self.home / "edge-cache"),
            "EDGE_MODELS": str(self.store),
            "HF_HOME": str(self.home / "huggingface"),
            "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
            "PYTHONPATH": str(ROOT),
            "OMP_WAIT_POLICY": "passive",
            **more,
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "edge", *words]

    def edge(self, hub: LocalHub | None, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return command_line.run(
            *words, cwd=self.work, env=self.environment(hub, **more), program="python -m edge"
        )

    def start(self, hub: LocalHub, *words: str) -> command_line.Started:
        return command_line.start(
            *words,
            cwd=self.work,
            env=self.environment(hub),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            program="python -m edge",
        )

    def blobs(self) -> list[str]:
        return sorted(path.name for path in self.home.glob("huggingface/hub/*/blobs/*"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def until(done: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def refused(run: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    """The command failed with one line that has these parts, and without a traceback."""
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    for part in parts:
        assert part in run.stderr, run.stderr


# --- a repository of GGUFs ---


def test_a_gguf_is_downloaded_once_and_its_name_works_offline(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, token="hf_right")
    data = (repository / NAME).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    done = machine.edge(hub, "pull", GGUF, HF_TOKEN="hf_right")
    assert done.returncode == 0, done.stderr
    link = machine.store / NAME
    assert done.stdout == (
        f"{link}: Q4_K_M, {len(data) / 1e6:.1f} MB, from {GGUF} at {COMMIT[:12]}, "
        f"{len(data) / 1e6:.1f} MB downloaded\nSHA-256 {digest}\n"
    )
    assert f"download: {GGUF}, Q4_K_M" in done.stderr
    assert link.is_symlink() and link.read_bytes() == data
    assert hub.leaked == []  # the token stays at the hub

    assert "no download needed" in machine.edge(hub, "pull", f"{GGUF}:q4_k_m", HF_TOKEN="hf_right").stdout
    assert hub.ranges == [None]
    # No network: the name in the store, the hub id and the file all mean it; --offline too.
    for name in ("Tiny-Q4_K_M", GGUF, f"{GGUF}:Q4_K_M", f"{GGUF}/{NAME}", f"hf.co/{GGUF}"):
        seen = machine.edge(None, "inspect", name)
        assert seen.returncode == 0 and str(link) in seen.stdout, seen.stderr
    assert machine.edge(None, "pull", GGUF, "--offline").returncode == 0
    link.unlink()  # as `edge models rm` does: the cache still has the file
    assert machine.edge(None, "inspect", GGUF).returncode == 0
    assert link.is_symlink()


def test_edge_run_says_so_before_it_downloads(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository})
    words = ("run", "Remove the file old.log.", "--model", GGUF, "--quiet", "--max-tokens", "5")
    first = machine.edge(hub, *words)
    assert first.returncode == 0, first.stderr
    assert first.stderr.startswith(f"download: {GGUF}, Q4_K_M, ")
    assert first.stdout.startswith('{"analysis"')
    again = machine.edge(None, *words)
    assert again.stdout == first.stdout
    assert "download" not in again.stderr


def test_a_lost_connection_is_resumed(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, cut=[1_000_000, 500_000])
    assert machine.edge(hub, "pull", GGUF).returncode == 0
    assert hub.ranges == [None, "bytes=1000000-", "bytes=1500000-"]
    assert (machine.store / NAME).read_bytes() == (repository / NAME).read_bytes()


def test_a_server_without_ranges_sends_the_file_again(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, cut=[1_000_000], no_ranges=True)
    assert machine.edge(hub, "pull", GGUF).returncode == 0
    assert (machine.store / NAME).read_bytes() == (repository / NAME).read_bytes()


def test_the_next_call_resumes_a_download_that_failed(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, cut=[1_000_000, 0, 0, 0])
    failed = machine.edge(hub, "pull", GGUF)
    refused(failed, f"{GGUF}/{NAME}: the connection was lost at 1.0 MB of", "run the same command again")
    assert not machine.store.exists()
    done = machine.edge(hub, "pull", GGUF)
    assert done.returncode == 0, done.stderr
    assert hub.ranges[-1] == "bytes=1000000-"
    left = ((repository / NAME).stat().st_size - 1_000_000) / 1e6
    assert f"{left:.1f} MB downloaded" in done.stdout


def test_the_next_call_resumes_a_download_that_was_killed(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, cut=[2_000_000, 0, 0, 0])
    running = machine.start(hub, "pull", GGUF)
    until(lambda: len(hub.ranges) > 1)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    hub.cut.clear()
    assert machine.edge(hub, "pull", GGUF).returncode == 0
    assert hub.ranges[-1] == "bytes=2000000-"


def test_an_interrupted_download_says_how_to_resume(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, slow=threading.Event())
    running = machine.start(hub, "pull", GGUF)
    until(lambda: hub.ranges)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 130
    assert errors.endswith("interrupted; run the same command again to resume the download\n")


def test_a_file_with_another_sha256_is_refused(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, wrong_sha256={NAME})
    refused(machine.edge(hub, "pull", GGUF), f"{GGUF}/{NAME}: has the SHA-256", "but the hub reports")
    assert machine.blobs() == []
    assert not machine.store.exists()


def test_a_changed_file_in_the_cache_is_refused(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository})
    assert machine.edge(hub, "pull", GGUF).returncode == 0
    blob = (machine.store / NAME).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    offline = machine.edge(hub, "pull", GGUF, "--offline")
    refused(offline, f"{blob}: has the SHA-256", "run the same command with a connection")
    again = machine.edge(hub, "pull", GGUF)
    assert again.returncode == 0 and "MB downloaded" in again.stdout, again.stderr
    assert (machine.store / NAME).read_bytes() == (repository / NAME).read_bytes()
    assert hub.ranges == [None, None]


def test_a_partial_file_that_is_too_long_starts_again(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository})
    data = (repository / NAME).read_bytes()
    blobs = machine.home / "huggingface" / "hub" / "models--org--Tiny-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(data).hexdigest()}.edge.incomplete").write_bytes(data + b"more")
    done = machine.edge(hub, "pull", GGUF)
    assert done.returncode == 0, done.stderr
    assert (machine.store / NAME).read_bytes() == data


def test_hostile_file_names_are_left_out(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    for other in ("a:b-Q4_K_M.gguf", "-M-Q4_K_M.gguf", "CON.gguf", ".M-Q4_K_M.gguf", "M\\N-Q4_K_M.gguf"):
        (repository / other).write_bytes(b"not asked for")
    hub = start({GGUF: repository})
    refused(machine.edge(hub, "pull", f"{GGUF}:Q8_0"), f"type Q8_0; it holds {NAME}: give")


@pytest.mark.parametrize(
    "name",
    [
        "a:b",
        "C:/x",
        "a?b",
        "con",
        "x/NUL.gguf",
        "COM1.gguf",
        "a. ",
        "a.",
        "-a",
        ".a",
        "a/../b",
        "a\\b",
        "a//b",
        "",
    ],
)
def test_names_that_are_not_safe(name: str) -> None:
    assert not is_safe(name)
    assert is_safe("BF16/Model-1.5-BF16-00001-of-00002.gguf") and is_safe("console.gguf")


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"version https://git-lfs", "is not a GGUF file"), (None, "truncated")],
)
def test_what_is_no_usable_model_gets_no_name(
    machine: Machine, repository: Path, start: Callable[..., LocalHub], content: bytes | None, says: str
) -> None:
    file = repository / NAME
    file.write_bytes(content or file.read_bytes()[:-1000])
    refused(machine.edge(start({GGUF: repository}), "pull", GGUF), says)
    assert not list(machine.store.glob("*"))


def test_the_type_chooses_the_file(
    machine: Machine, repository: Path, start: Callable[..., LocalHub], tiny_bf16: Path
) -> None:
    for other in ("mmproj-Tiny-Q4_K_M.gguf", "Tiny-UD-Q4_K_M.gguf", "Tiny-Q4_K_M-imatrix.gguf"):
        (repository / other).write_bytes(b"not asked for")
    (repository / "BF16").mkdir()
    shutil.copy(tiny_bf16, repository / "BF16" / "Tiny-BF16.gguf")
    hub = start({GGUF: repository})
    assert str(machine.store / NAME) in machine.edge(hub, "pull", GGUF).stdout
    assert str(machine.store / "Tiny-BF16.gguf") in machine.edge(hub, "pull", GGUF, "-q", "bf16").stdout
    refused(
        machine.edge(hub, "pull", f"{GGUF}:Q6_K"),
        "holds no GGUF of type Q6_K; it holds BF16/Tiny-BF16.gguf, Tiny-Q4_K_M.gguf, Tiny-UD-Q4_K_M.gguf",
    )
    refused(machine.edge(hub, "pull", f"{GGUF}/other.gguf"), "holds no other.gguf; it holds")
    refused(machine.edge(hub, "pull", f"{GGUF}:Q8_0", "-q", "Q6_K"), "already names a type or a file", code=2)


def split(source: Path, folder: Path) -> list[Path]:
    """The parts of a GGUF as llama-gguf-split writes them."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(source)
    names = [folder / f"Tiny-Q4_K_M-{number:05}-of-00002.gguf" for number in (1, 2)]
    half = len(reader.tensors) // 2
    for number, (path, tensors) in enumerate(
        zip(names, (reader.tensors[:half], reader.tensors[half:]), strict=True)
    ):
        writer = GGUFWriter(path, "lfm2moe")
        if number == 0:
            for key, item in reader.fields.items():
                if key.startswith(("GGUF.", "edge.")) or key == "general.architecture":
                    continue
                kind, sub = item.types[0], item.types[-1] if item.types[0] == GGUFValueType.ARRAY else None
                writer.add_key_value(key, item.contents(), kind, sub)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return names


def test_a_model_in_parts(
    machine: Machine, tmp_path: Path, start: Callable[..., LocalHub], tiny_q4: Path
) -> None:
    folder = tmp_path / "parts" / "Q4_K_M"
    folder.mkdir(parents=True)
    parts = split(tiny_q4, folder)
    hub = start({GGUF: folder.parent})
    done = machine.edge(hub, "pull", GGUF)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in machine.store.iterdir()) == [path.name for path in parts]
    words = ("--quiet", "--max-tokens", "12")
    answer = machine.edge(None, "run", "Remove the file old.log.", "-m", GGUF, *words)
    whole = machine.edge(None, "run", "Remove the file old.log.", "-m", str(tiny_q4), *words)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == whole.stdout
    parts[1].unlink()
    refused(machine.edge(hub, "pull", f"{GGUF}:Q4_K_M"), "holds 1 of the 2 parts of Q4_K_M/Tiny-Q4_K_M.gguf")


def test_two_owners_may_use_one_name(
    machine: Machine, repository: Path, tmp_path: Path, start: Callable[..., LocalHub], smollm2_q4: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(smollm2_q4, other / NAME)
    hub = start({GGUF: repository, "else/Tiny-GGUF": other})
    assert machine.edge(hub, "pull", GGUF).returncode == 0
    assert machine.edge(hub, "pull", "else/Tiny-GGUF").returncode == 0
    assert (machine.store / NAME).read_bytes() == (repository / NAME).read_bytes()
    assert (machine.store / "Tiny-Q4_K_M-else.gguf").read_bytes() == smollm2_q4.read_bytes()


def test_the_whole_type_counts_and_several_models_are_refused(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    (repository / "draft-Q4_K_M.gguf").write_bytes(b"a draft")
    hub = start({GGUF: repository})
    assert str(machine.store / NAME) in machine.edge(hub, "pull", GGUF).stdout
    (repository / "Other-Q4_K_M.gguf").write_bytes(b"another model")
    refused(
        machine.edge(hub, "pull", GGUF),
        "holds several GGUFs of type Q4_K_M; it holds Other-Q4_K_M.gguf, Tiny-Q4_K_M.gguf: give owner/name/FILE.gguf",
    )
    (repository / NAME).rename(repository / "Tiny-UD-Q4_K_M.gguf")
    (repository / "Other-Q4_K_M.gguf").unlink()
    (repository / "draft-Q4_K_M.gguf").unlink()
    refused(machine.edge(hub, "pull", f"{GGUF}:Q4_K_M"), "holds no GGUF of type Q4_K_M")


def test_a_broken_link_of_another_repository_is_not_replaced(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository, "else/Tiny-GGUF": repository})
    assert machine.edge(hub, "pull", GGUF).returncode == 0
    link = machine.store / NAME
    target = os.readlink(link)
    shutil.rmtree(machine.home / "huggingface")
    assert machine.edge(hub, "pull", "else/Tiny-GGUF").returncode == 0
    assert os.readlink(link) == target and not link.exists()
    assert (machine.store / "Tiny-Q4_K_M-else.gguf").is_file()
    leftover = machine.store / f".{NAME}.0123abcd.tmp"
    leftover.symlink_to(target)  # of a killed process
    link.unlink()
    assert machine.edge(hub, "pull", GGUF).returncode == 0
    assert link.is_file() and not leftover.is_symlink()
    # The user has moved the cache: the same link gets the new place.
    moved = str(machine.home / "moved")
    assert machine.edge(hub, "pull", GGUF, HF_HOME=moved).returncode == 0
    assert os.readlink(link).startswith(moved)


# --- the hub refuses, or cannot be reached ---


def test_gated_repositories_say_how_to_get_access(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, token="hf_right")
    page = f"{hub.url}/{GGUF}"
    refused(
        machine.edge(hub, "pull", GGUF), f"{GGUF} is gated; accept its terms on {page}, then set HF_TOKEN"
    )
    hub.granted = False
    refused(machine.edge(hub, "pull", GGUF, HF_TOKEN="hf_right"), "has no access: ask for it on", page)
    assert hub.ranges == []
    hub.granted = True
    assert machine.edge(hub, "pull", GGUF, HF_TOKEN="hf_right").returncode == 0


def test_unknown_repositories_revisions_and_no_network(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository})
    refused(
        machine.edge(hub, "pull", "LiquidAI/LFM2.5-8B-A1B-GUF"), "did you mean LiquidAI/LFM2.5-8B-A1B-GGUF"
    )
    refused(machine.edge(hub, "pull", GGUF, "--revision", "nope"), "(revision nope) has no such revision")
    refused(machine.edge(hub, "pull", GGUF, "--revision", "../x"), "is not a branch, a tag or a commit")
    refused(machine.edge(None, "pull", GGUF), "cannot be fetched and is not in the local cache")
    refused(machine.edge(hub, "pull", GGUF, "--offline"), "is not complete in the local Hugging Face cache")
    assert hub.ranges == []
    assert machine.edge(hub, "pull", GGUF, "--revision", COMMIT).returncode == 0
    assert machine.edge(None, "pull", GGUF, "--revision", COMMIT).returncode == 0  # the network is down
    assert machine.edge(hub, "pull", GGUF).returncode == 0
    cached = machine.edge(None, "pull", GGUF)
    assert cached.returncode == 0
    assert "the hub cannot be reached (" in cached.stderr
    assert f"using the cached commit {COMMIT[:12]} of {GGUF}" in cached.stderr


def test_a_network_error_names_what_the_user_wrote_and_a_remedy(machine: Machine) -> None:
    known = next(model for model in known_models() if model.path.stem == "gemma-4-e2b-it")
    for words, hub_id in ((("pull",), known.gguf_id), (("convert",), known.hub_id)):
        refused(
            machine.edge(None, *words, "gemma-4-e2b-it"),
            f"error: gemma-4-e2b-it: {hub_id} cannot be fetched and is not in the local cache; "
            "check the network and ",
            "HF_ENDPOINT (",
        )
    refused(
        machine.edge(None, "pull", GGUF, HTTPS_PROXY="x"),
        f"error: {GGUF} cannot",
        "HTTPS_PROXY, HF_ENDPOINT (",
    )
    for endpoint, advice in (("hub.test", "give https://hub.test, or unset it"), ("", "unset it")):
        refused(
            machine.edge(None, "pull", GGUF, HF_ENDPOINT=endpoint),
            f"error: HF_ENDPOINT: '{endpoint}' is not an address that begins with https:// or http://; {advice}",
        )


@pytest.mark.parametrize("words", [("doctor", "--offline", "--model", GGUF), ("inspect", GGUF, "--offline")])
def test_offline_does_not_connect(
    machine: Machine, repository: Path, start: Callable[..., LocalHub], words: tuple[str, ...]
) -> None:
    hub = start({GGUF: repository})
    refused(machine.edge(hub, *words), "is not complete in the local Hugging Face cache")
    assert hub.paths == []


@pytest.mark.parametrize(
    "words",
    [
        ("pull", f"{GGUF}:BAD"),
        ("pull", f"{GGUF}:BAD", "--offline"),
        ("pull", GGUF, "--quant", "BAD"),
        ("pull", "gemma-4-e2b-it:BAD"),
        ("pull", "tiny-terminal:BAD"),
        ("run", "ls", "--model", f"{GGUF}:BAD"),
        ("convert", f"{GGUF}:BAD"),
    ],
)
def test_a_type_that_is_none_does_not_ask_the_hub(
    machine: Machine, repository: Path, start: Callable[..., LocalHub], words: tuple[str, ...]
) -> None:
    hub = start({GGUF: repository})
    refused(machine.edge(hub, *words), "BAD is not a quantization type; give one such as Q4_K_M")
    assert hub.paths == []


@pytest.mark.parametrize("path", ["./org/Tiny-GGUF", "../org/Tiny-GGUF", "/org/Tiny-GGUF", "org\\Tiny-GGUF"])
def test_a_mistyped_path_does_not_ask_the_hub(
    machine: Machine, repository: Path, start: Callable[..., LocalHub], path: str
) -> None:
    hub = start({GGUF: repository})
    for words in (
        ("run", "x", "--model", path),
        ("inspect", path),
        ("measure", "-m", path, "-r", REPLAY, "-o", "m"),
    ):
        refused(machine.edge(hub, *words), f"{path}: no such file")
    assert hub.paths == []


def test_a_cache_or_store_that_cannot_be_written(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository})
    file = machine.work / "file"
    file.touch()
    refused(
        machine.edge(hub, "pull", GGUF, HF_HOME=str(file / "x")), f"{file}", "cannot be written: Not a dir"
    )
    refused(machine.edge(hub, "pull", GGUF, EDGE_MODELS=str(file / "x")), f"{file}/x", "cannot be written")


def test_a_proxy_is_used(machine: Machine, repository: Path, start: Callable[..., LocalHub]) -> None:
    hub = start({GGUF: repository})
    more = {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.url, "NO_PROXY": "127.0.0.1"}
    done = machine.edge(hub, "pull", GGUF, **more)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith("http://hub.invalid/") for path in hub.paths)


def test_a_second_pull_waits_for_the_first(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, slow=threading.Event())
    first = machine.start(hub, "pull", GGUF)
    until(lambda: hub.ranges)
    second = machine.start(hub, "pull", GGUF)
    assert second.stderr is not None and hub.slow is not None
    assert "download:" in second.stderr.readline()
    assert second.stderr.readline() == f"{NAME}: another process is downloading this file; waiting for it\n"
    hub.slow.set()
    for process in (first, second):
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert hub.ranges == [None]


# --- questions before a large download ---


def test_without_a_terminal_a_large_download_needs_yes(
    machine: Machine, repository: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository}, claimed={NAME: 2_500_000_000})
    done = machine.edge(hub, "pull", GGUF)
    refused(done, f"download: {GGUF}, Q4_K_M, 2.5 GB to {machine.home}", "add --yes", code=2)
    refused(machine.edge(hub, "eval", "--model", GGUF, "--out", "r.json"), "add --yes", code=2)
    refused(
        machine.edge(hub, "run", "x", "--model", GGUF), "more than 1 GB", f"run first: edge pull {GGUF} --yes"
    )
    assert hub.ranges == []
    hub.claimed[NAME] = 10**15
    refused(machine.edge(hub, "pull", GGUF, "--yes"), "free on this disk", "1,000,000.0 GB needed")
    assert hub.ranges == []


def test_on_a_terminal_edge_asks(machine: Machine, repository: Path, start: Callable[..., LocalHub]) -> None:
    hub = start({GGUF: repository}, claimed={NAME: 2_500_000_000})
    primary, secondary = pty.openpty()
    running = subprocess.Popen(
        machine.command("pull", GGUF),
        cwd=machine.work,
        env=machine.environment(hub),
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
    )
    os.close(secondary)
    seen = b""
    while b"Download it?" not in seen:
        seen += os.read(primary, 1000)
    os.write(primary, b"n\n")
    assert running.wait(60) == 1
    os.close(primary)
    assert b"2.5 GB" in seen
    assert hub.ranges == []


# --- a repository of safetensors ---


def test_safetensors_are_converted_into_the_store(
    machine: Machine, tiny_folder: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({"org/tiny": tiny_folder}, cut=[3_000_000])
    done = machine.edge(hub, "pull", "org/tiny:Q8_0")
    assert done.returncode == 0, done.stderr
    path = machine.store / "tiny-Q8_0.gguf"
    assert done.stdout.startswith(f"{path}: Q8_0, ")
    assert hub.ranges == [None, "bytes=3000000-"]
    before = path.stat().st_mtime_ns
    assert "no download needed" in machine.edge(hub, "pull", "org/tiny:Q8_0").stdout
    assert path.stat().st_mtime_ns == before
    seen = machine.edge(None, "inspect", "org/tiny:q8_0")
    assert seen.returncode == 0 and COMMIT in seen.stdout, seen.stderr

    converted = machine.edge(hub, "convert", "org/tiny:Q6_K", "--out", "x.gguf")
    assert converted.stdout.startswith("x.gguf: Q6_K"), converted.stderr
    hub.commit = "f" * 40
    refused(machine.edge(hub, "pull", "org/tiny:Q8_0"), f"was made from the commit {COMMIT}", "models rm")


def test_convert_asks_too_and_refuses_ggufs(
    machine: Machine, repository: Path, tiny_folder: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({GGUF: repository, "org/tiny": tiny_folder}, claimed={"model.safetensors": 2_000_000_000})
    refused(machine.edge(hub, "convert", GGUF), f"holds GGUFs, which need no conversion; edge pull {GGUF}")
    refused(machine.edge(hub, "convert", "org/tiny"), "org/tiny, safetensors, 2.0 GB", "add --yes", code=2)
    refused(machine.edge(hub, "sweep", "org/tiny", "--quants", "Q8_0", "--out", "s"), "add --yes", code=2)
    vllm = ("eval", "-m", "org/tiny", "--backend", "vllm", "--out", "r.json")
    refused(machine.edge(hub, *vllm), "add --yes", code=2)
    assert hub.ranges == []


def test_options_are_checked_before_a_download(
    machine: Machine, tiny_folder: Path, start: Callable[..., LocalHub]
) -> None:
    hub = start({"org/tiny": tiny_folder})
    convert = ("convert", "org/tiny")
    refused(machine.edge(hub, *convert, "--quant", "Q9_X"), "Q9_X is not a quantization type", code=2)
    refused(machine.edge(hub, *convert, "--imatrix", "none.gguf"), "none.gguf: no such file")
    refused(machine.edge(hub, *convert, "--lora", "none"), "none: no such folder")
    refused(machine.edge(hub, *convert, "--tensor-type", "x=q99"), "q99 is not a ggml type", code=2)
    (machine.work / "file").touch()
    refused(machine.edge(hub, *convert, "--out", "file/x.gguf"), "file")
    sweep = ("sweep", "org/tiny", "--out", "s")
    refused(machine.edge(hub, *sweep, "--quants", "Q9_X"), "Q9_X is not a quantization type", code=2)
    refused(machine.edge(hub, *sweep, "--replay", "none.jsonl"), "none.jsonl")
    for words in (("eval", "-o", "r.json"), ("measure", "-o", "m.json"), ("imatrix", "-o", "i.gguf")):
        refused(machine.edge(hub, *words, "-m", "org/tiny", "-r", "none.jsonl"), "none.jsonl")
    assert hub.paths == []


# --- what a name means ---

NO_MODEL = "nothing-like-it"
REPLAY = str(ROOT / "models" / "tiny-terminal" / "eval.jsonl")
COMMANDS = [
    ("run", "x", "-m", NO_MODEL),
    ("agent", "x", "-m", NO_MODEL, "--yes", "--sandbox"),
    ("serve", "-m", NO_MODEL),
    ("eval", "-m", NO_MODEL, "--out", "r.json"),
    ("eval", "-m", NO_MODEL, "--out", "r.json", "--backend", "vllm"),
    ("eval", "-m", NO_MODEL, "--out", "r.json", "--backend", "openai", "--base-url", "http://127.0.0.1:9"),
    ("measure", "-m", NO_MODEL, "--replay", REPLAY, "--out", "m.json"),
    ("imatrix", "-m", NO_MODEL, "--replay", REPLAY, "--out", "i.gguf"),
    ("prompt", "-m", NO_MODEL, "--messages", REPLAY),
    ("inspect", NO_MODEL),
    ("doctor", "-m", NO_MODEL),
    ("bundle", "-m", NO_MODEL, "--out", "b.tar"),
    ("pull", NO_MODEL),
    ("convert", NO_MODEL),
    ("sweep", NO_MODEL, "--quants", "Q8_0", "--out", "s"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_every_command_takes_names(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from edge.cli.main import app

    monkeypatch.chdir(tmp_path)
    wrong = tuple("lfm2.5-8b-a1b-termnal" if word == NO_MODEL else word for word in words)
    result = CliRunner().invoke(app, wrong)
    assert isinstance(result.exception, ModelFileError), (result.exception, result.output)
    assert "did you mean lfm2.5-8b-a1b-terminal" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_known_name_is_pulled_from_its_repository_of_ggufs(
    machine: Machine, tmp_path: Path, start: Callable[..., LocalHub], tiny_q4: Path
) -> None:
    folder = tmp_path / "known"
    folder.mkdir()
    shutil.copy(tiny_q4, folder / "LFM2.5-8B-A1B-Q4_K_M.gguf")
    hub = start({"LiquidAI/LFM2.5-8B-A1B-GGUF": folder})
    done = machine.edge(hub, "pull", "lfm2.5-8b-a1b")
    assert done.returncode == 0, done.stderr
    assert "from LiquidAI/LFM2.5-8B-A1B-GGUF" in done.stdout
    assert machine.edge(None, "inspect", "LFM2.5-8B-A1B").returncode == 0
    assert machine.edge(None, "inspect", "x", EDGE_MODEL="lfm2.5-8b-a1b").returncode == 1


def test_a_local_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name") == Reference("org/name", "org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve("org/name") == Path("org/name")
    with pytest.raises(ModelFileError, match=r"org/nam: no such file.*for the hub write hf.co/org/nam"):
        resolve("org/nam")
    assert resolve("hf.co/org/nam") == Reference("hf.co/org/nam", "org/nam")


@pytest.mark.parametrize(
    ("text", "hub_id", "quant", "file", "revision"),
    [
        ("a/b:Q8_0", "a/b", "Q8_0", None, None),
        ("a/b/c.gguf", "a/b", None, "c.gguf", None),
        ("a/b/Q8_0/c-00001-of-00002.gguf", "a/b", None, "Q8_0/c-00001-of-00002.gguf", None),
        ("https://huggingface.co/a/b", "a/b", None, None, None),
        ("https:/huggingface.co/a/b/", "a/b", None, None, None),  # as a Path writes it
        ("https://huggingface.co/a/b/blob/v1/c.gguf", "a/b", None, "c.gguf", "v1"),
        ("hf://a/b:Q6_K", "a/b", "Q6_K", None, None),
        ("https://huggingface.co/a/b/resolve/main/c.gguf?download=true", "a/b", None, "c.gguf", "main"),
        ("https://huggingface.co/a/b#usage", "a/b", None, None, None),
        ("https://huggingface.co/a/b/tree/v1.0", "a/b", None, None, "v1.0"),
        ("https://huggingface.co/a/b/tree/main/?show=x", "a/b", None, None, "main"),
        ("https://huggingface.co/a/b/blob/main/Q8_0%2Fc.gguf", "a/b", None, "Q8_0/c.gguf", "main"),
        ("https://huggingface.co/a/b/blob/refs%2Fpr%2F3/c.gguf", "a/b", None, "c.gguf", "refs/pr/3"),
        ("https://huggingface.co/a/b/tree/refs/pr/3", "a/b", None, None, "refs/pr/3"),
    ],
)
def test_forms_of_a_hub_id(
    text: str, hub_id: str, quant: str | None, file: str | None, revision: str | None
) -> None:
    assert resolve(text) == Reference(text, hub_id, quant, file, revision)


def test_known_names_and_their_types() -> None:
    found = resolve("LFM2.5-8B-A1B-terminal:Q8_0")
    assert isinstance(found, Reference) and found.known is not None
    assert (found.hub_id, found.wanted) == (found.known.hub_id, "Q8_0")
    small = resolve("smollm2-135m-instruct")
    assert isinstance(small, Reference) and small.wanted == "Q8_0"
    embedded = resolve("tiny-terminal:Q8_0")
    assert isinstance(embedded, Reference) and embedded.hub_id == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lfm2.5-8b-a1b-termnal", "did you mean lfm2.5-8b-a1b-terminal"),
        ("tiny", "did you mean tiny-terminal"),
        ("gemma", "did you mean gemma-4-"),
        (
            "nothing-like-it",
            "not a hub id (owner/name); `edge models` and `edge models known` list the names",
        ),
        ("nothing.gguf", "nothing.gguf: no such file"),
        ("./org/name", "./org/name: no such file"),
        ("~/org/name.gguf", "~/org/name.gguf: no such file"),
        ("models/nothing.gguf", "models/nothing.gguf: no such file"),
        ("", "the name of the model is empty"),
        ("a\0b", r"a\x00b: no such file"),
        ("a/b/c", "not a hub id"),
        ("a/b:Q4/..", "not a hub id"),
        ("a/b/../c.gguf", "../c.gguf is not the name of a file in a repository"),
        ("hf.co/a/b/blob/main/%2E%2E/c.gguf", "../c.gguf is not the name of a file in a repository"),
    ],
)
def test_what_is_no_name(text: str, says: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        resolve(text)
    assert says in str(caught.value)


def test_known_models_name_a_source_for_their_repositories() -> None:
    for model in known_models():
        if model.gguf_id:
            assert model.source, model.path
            assert isinstance(resolve(model.gguf_id), Reference)
