"""States on disk: what one process read, another one need not, and no bit of an answer changes.

pytest tests/llama/test_states.py
"""

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
import scripted
from own_state import own_state
from scripted import Read, script
from served import serving

from edge.agent.answerer import LocalAnswerer
from edge.answer.answering import Answering
from edge.llama.engine import Engine
from edge.llama.jobs import Job
from edge.llama.loading import Loading, States
from edge.llama.serving import Request, ServingEngine
from edge.llama.states import states_folder, stored_files
from edge.runner import Runner
from edge.system.keys import key_path

pytestmark = pytest.mark.slow

COLD = Loading(threads=1, batch=64)
WARM = Loading(threads=1, batch=64, states=States())
WHOLE = Loading(threads=1, batch=64, states=States(whole=True))


@pytest.fixture(params=["tiny_q4", "smollm2_q4"])
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGE_STATE", str(own_state(tmp_path / "state")))


def tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(20, 400) for _ in range(count)]


def ask(
    path: Path, prompt: list[int], stored: Sequence[int] = (), loading: Loading = WARM, cells: int = 0
) -> tuple[Read, int]:
    """The logits of a new engine, and how many tokens it restored."""
    engine = Engine(path, loading)
    engine.reserve(max(cells, len(prompt) + 8), 5 if cells else 2)
    cuts = [length for length in stored if length < len(prompt)]
    [(_, read)] = engine.run([Job(prompt, script([30, 31], [32]), 3, cuts, stored=stored)])
    restored = len(prompt) - engine.prompt_tokens_decoded
    engine.close()
    return read, restored


def same(a: Read, b: Read) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def cold(path: Path, prompt: list[int], stored: Sequence[int] = ()) -> Read:
    read, restored = ask(path, prompt, stored, COLD)
    assert restored == 0
    return read


INSTRUCTIONS = tokens(150, 1)
FIRST, SECOND = INSTRUCTIONS + tokens(70, 2), INSTRUCTIONS + tokens(90, 3)


def test_a_restored_beginning_changes_no_bit(path: Path) -> None:
    """Another task after the same instructions, with another size of the cache."""
    read, restored = ask(path, FIRST, [150])
    assert restored == 0 and same(read, cold(path, FIRST, [150]))
    [file] = stored_files(states_folder())
    assert file.head["kind"] == "instructions" and list(file.tokens) == INSTRUCTIONS
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    read, restored = ask(path, SECOND, [150], cells=1000)
    assert restored == 150 and same(read, cold(path, SECOND, [150]))


def test_other_chunks_are_not_used(tiny_q4: Path) -> None:
    """The same tokens, but an empty cache would read them in other chunks: the last bits would differ."""
    ask(tiny_q4, FIRST, [150])
    assert ask(tiny_q4, SECOND, [130])[1] == 0
    assert ask(tiny_q4, SECOND, [100, 150])[1] == 0
    assert ask(tiny_q4, [*tokens(1, 9), *SECOND[1:]], [150])[1] == 0
    assert ask(tiny_q4, SECOND, [150], Loading(threads=1, batch=32, states=States()))[1] == 0


def test_a_transformer_uses_a_part_and_a_hybrid_only_the_whole(tiny_q4: Path, smollm2_q4: Path) -> None:
    """A whole prompt is on disk. Of another one with the same beginning, whole chunks are used."""
    for path, part in ((tiny_q4, 0), (smollm2_q4, 128)):
        read, _ = ask(path, FIRST, [len(FIRST)], WHOLE)
        again, restored = ask(path, FIRST, [len(FIRST)], WHOLE)
        assert restored == len(FIRST) and same(read, again)
        read, restored = ask(path, SECOND, loading=WHOLE)
        assert restored == part and same(read, cold(path, SECOND))


def changed(**options: object) -> Callable[[Path], Loading]:
    return lambda path: Loading(**{"threads": 1, "batch": 64, "states": States(), **options})  # type: ignore[arg-type]


OTHERS = {
    "threads": changed(threads=2),
    "flash attention": changed(flash_attention=True),
    "cache type": changed(kv_type="q8_0"),
    "layers": changed(gpu_layers=0),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_engine_does_not_use_it(what: str, tiny_q4: Path) -> None:
    ask(tiny_q4, FIRST, [150], changed(gpu_layers=-1)(tiny_q4))
    assert ask(tiny_q4, SECOND, [150], changed(gpu_layers=-1)(tiny_q4))[1] == 150
    assert ask(tiny_q4, SECOND, [150], OTHERS[what](tiny_q4))[1] == 0


def test_another_file_under_the_same_name_does_not_use_it(
    tiny_q4: Path, tiny_bf16: Path, tmp_path: Path
) -> None:
    """Also if the file is exchanged while the first one is in memory: its states are then not kept at all."""
    place = tmp_path / "model.gguf"
    shutil.copy(tiny_q4, place)
    ask(place, FIRST, [150])
    assert ask(place, SECOND, [150])[1] == 150
    engine = Engine(place, WARM)
    shutil.copy(tiny_bf16, tmp_path / "new.gguf")
    os.replace(tmp_path / "new.gguf", place)
    engine.reserve(400, 2)
    [(_, read)] = engine.run([Job(FIRST, script([30]), 1, [140], stored=[140])])
    engine.close()
    assert [list(file.tokens) for file in stored_files(states_folder())] == [INSTRUCTIONS]
    read, restored = ask(place, SECOND, [150])
    assert restored == 0 and same(read, cold(tiny_bf16, SECOND, [150]))


def test_flipped_bits_and_cut_files_are_refused_or_right(tiny_q4: Path) -> None:
    """At 25 places of the file (`benchmarks/restart.py --flips 1000`: at any number of them)."""
    ask(tiny_q4, FIRST, [150])
    [file] = stored_files(states_folder())
    whole, expected = file.path.read_bytes(), cold(tiny_q4, SECOND, [150])
    rng = random.Random(5)
    places = [*range(0, 200, 25), *(rng.randrange(len(whole)) for _ in range(12)), *range(-60, 0, 12)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        file.path.write_bytes(damaged)
        read, restored = ask(tiny_q4, SECOND, [150])
        assert restored == 0 and same(read, expected), place
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.path.write_bytes(whole[:length])
        assert ask(tiny_q4, SECOND)[1] == 0
    file.path.write_bytes(whole)
    assert ask(tiny_q4, SECOND, [150])[1] == 150


def test_a_file_of_another_account_is_refused(tiny_q4: Path) -> None:
    """Whole and right in itself, but sealed with another key; and no other kind of file is opened."""
    ask(tiny_q4, FIRST, [150])
    [file] = stored_files(states_folder())
    whole = file.path.read_bytes()
    key_path().write_bytes(os.urandom(32))
    assert ask(tiny_q4, SECOND)[1] == 0
    assert ask(tiny_q4, SECOND, [150])[1] == 0  # it was removed, and this run writes its own
    assert file.path.read_bytes()[:-32] == whole[:-32] and file.path.read_bytes() != whole
    for make in (lambda: os.mkfifo(file.path), lambda: file.path.symlink_to(file.path.with_suffix(".old"))):
        os.replace(file.path, file.path.with_suffix(".old"))
        make()
        assert ask(tiny_q4, SECOND)[1] == 0
        file.path.unlink()
        os.replace(file.path.with_suffix(".old"), file.path)
    assert ask(tiny_q4, SECOND, [150])[1] == 150


def test_the_least_recently_used_goes_first(tiny_q4: Path) -> None:
    prompts = [tokens(100 + i, 20 + i) for i in range(4)]
    ask(tiny_q4, prompts[0], [90])
    [one] = stored_files(states_folder())
    small = Loading(threads=1, batch=64, states=States(limit=int(one.n_bytes * 3.5)))
    for prompt in prompts[1:3]:
        ask(tiny_q4, prompt, [90], small)
    for file in stored_files(states_folder()):
        os.utime(file.path, (1000, 1000))
    assert ask(tiny_q4, prompts[0], [90], small)[1] == 90  # used now
    ask(tiny_q4, prompts[3], [90], small)
    kept = [list(file.tokens) for file in stored_files(states_folder())]
    assert len(kept) == 3 and prompts[0][:90] in kept and prompts[3][:90] in kept
    tiny = Loading(threads=1, batch=64, states=States(limit=1000))
    ask(tiny_q4, tokens(100, 50), [90], tiny)
    assert not any(tokens(100, 50)[:90] == list(file.tokens) for file in stored_files(states_folder()))


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:5]
from test_states import FIRST, ask
print(ask(Path(sys.argv[1]), FIRST[:150] + list(range(30, 30 + int(sys.argv[2]))), [150])[1], flush=True)
"""


def process(path: Path, more: int) -> subprocess.Popen[str]:
    arguments = [
        sys.executable,
        "-c",
        PROGRAM,
        path,
        str(more),
        Path(__file__).parent,
        Path(scripted.__file__).parent,
    ]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment_and_two_at_once(tiny_q4: Path) -> None:
    """A killed process leaves a whole state or none; then two processes at once both answer, and one state is left."""
    begin = time.monotonic()
    first = process(tiny_q4, 5)
    assert first.communicate()[0] == "0\n"
    seconds = time.monotonic() - begin
    [file] = stored_files(states_folder())
    expected = file.path.read_bytes()
    for share in (0.8, 0.95):
        file.path.unlink(missing_ok=True)
        killed = process(tiny_q4, 5)
        time.sleep(seconds * share)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert not file.path.exists() or file.path.read_bytes() == expected
    file.path.unlink(missing_ok=True)
    both = [process(tiny_q4, 6), process(tiny_q4, 7)]
    assert {one.communicate()[0] for one in both} <= {"0\n", "150\n"}
    assert [path.name for path in states_folder().iterdir()] == [file.path.name]
    assert file.path.read_bytes() == expected


def served(path: Path, prompt: list[int], loading: Loading) -> tuple[Read, int]:
    """The logits of a new server engine, and the tokens that it did not read."""
    engine = ServingEngine(path, loading)
    engine.reserve(2 * 512, 2)
    kept: list[int] = []
    request = Request(prompt, script([30, 31], [32]), 3, [150], stored=[150], begun=kept.append)
    arrivals = [request]
    [(_, read)] = engine.serve(lambda wait: arrivals.pop() if arrivals else None, 1)
    engine.close()
    return read, kept[0]


def test_a_server_restores_after_a_restart(path: Path) -> None:
    served(path, FIRST, WARM)
    read, kept = served(path, SECOND, WARM)
    assert kept == 150
    expected, kept = served(path, SECOND, COLD)
    assert kept == 0 and same(read, expected)


def test_a_server_continues_conversations_after_a_restart(path: Path, tmp_path: Path) -> None:
    """`edge serve --state-cache`: stopped or killed, the next process reads only what is new in a conversation."""

    def chat(server: str, messages: list[dict[str, str]]) -> tuple[str, int, int]:
        body = {"model": "any", "messages": messages, "max_tokens": 24, "temperature": 0}
        answer = httpx.post(f"{server}/v1/chat/completions", json=body, timeout=600).json()
        usage = answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return answer["choices"][0]["message"]["content"], usage["prompt_tokens"], cached

    first = [{"role": "user", "content": "List the files of this folder, then count them. " * 20}]
    options = ("--context", "1024", "--parallel", "2")
    stopped, killed = tmp_path / "cache", tmp_path / "killed"
    with serving(path, "--state-cache", "1GB", *options, EDGE_CACHE=str(stopped)) as server:
        answer, length, cached = chat(server, first)
        assert cached == 0
        while not stored_files(stopped / "states"):
            time.sleep(0.1)
        shutil.copytree(stopped, killed)  # what a killed process leaves
        second = [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": "total 0"}]
        expected, _, cached = chat(server, second)  # of a process that did not end
        assert cached >= length - 16
        third = [*second, {"role": "assistant", "content": expected}, {"role": "user", "content": "And now?"}]
        last, longer, _ = chat(server, third)  # has not grown by a quarter: written at the end
    for cache, messages, answered, least in (
        (killed, second, expected, length),
        (stopped, third, last, longer),
    ):
        with serving(path, "--state-cache", "1GB", *options, EDGE_CACHE=str(cache)) as server:
            text, _, cached = chat(server, messages)
        assert text == answered and cached >= least - 16
    with serving(path, *options, EDGE_CACHE=str(stopped)) as server:
        assert chat(server, third)[2] < length  # only states that change no bit


def test_a_resumed_conversation_answers_as_if_it_had_not_ended(smollm2_q4: Path, tiny_q4: Path) -> None:
    """`edge agent --resume`: the next answer is that of the process that did not end, and only new tokens are read."""
    messages = [{"role": "user", "content": "List the files of this folder, then count them. " * 20}]
    more = [{"role": "user", "content": "total 0"}]
    for path in (tiny_q4, smollm2_q4):

        def first(runner: Runner, answerer: LocalAnswerer) -> list[dict[str, str]]:
            answer = answerer.answer(messages, time.monotonic() + 600)
            answerer.keep()
            return [*messages, {"role": "assistant", "content": answer.raw}, *more]

        answering = Answering(max_tokens=40)
        with Runner.open(path, WHOLE) as runner:
            answerer = LocalAnswerer(runner, answering)
            conversation = first(runner, answerer)
            before = runner.engine.prompt_tokens_decoded
            expected = answerer.answer(conversation, time.monotonic() + 600)
            new = runner.engine.prompt_tokens_decoded - before
        shutil.rmtree(states_folder())
        with Runner.open(path, WHOLE) as runner:
            assert first(runner, LocalAnswerer(runner, answering)) == conversation
        resumed = Loading(threads=1, batch=64, states=States(whole=True, continues=True))
        with Runner.open(path, resumed) as runner:
            answer = LocalAnswerer(runner, answering).answer(conversation, time.monotonic() + 600)
            assert answer.raw == expected.raw
            assert runner.engine.prompt_tokens_decoded == new < 100
