"""Shards: whole tasks, decided from all rows; joined, they are byte for byte what one machine writes.

pytest tests/replay/test_shards.py
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import command_line
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.compare import compare
from edge.errors import EdgeError
from edge.measure.join import join_measurements
from edge.measure.run import Chosen, base_scores, measure
from edge.replay.journal import Journal
from edge.replay.rows import step_key
from edge.replay.shards import Shard, parse_shard
from edge.system.paths import embedded_rows

LIMIT = 12
# What is of the machines and of their time.
OF_MACHINES = {"timestamp", "load_time_sec", "gen_time_sec", "avg_sec_per_step", "engine", "provenance"}
EXACT = ("--limit", LIMIT, "--max-tokens", 16, "--parallel", 1, "--threads", 1)


def edge(*words: object) -> tuple[int, str]:
    done = command_line.run(*words)
    return done.returncode, done.stderr.strip()


def evaluate(model: Path, out: Path, *more: object) -> tuple[int, str]:
    return edge("eval", "--quiet", "--model", model, "--replay", embedded_rows(), "--out", out, *EXACT, *more)


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


@given(st.lists(st.integers(0, 9).map(str), min_size=1, max_size=60), st.integers(1, 12))
def test_shards_are_whole_tasks_and_alike_in_size(tasks: list[str], count: int) -> None:
    if len(set(tasks)) < count:
        with pytest.raises(EdgeError, match=f"too few for {count} shards"):
            Shard(1, count).places(tasks, "rows")
        return
    parts = [Shard(index, count).places(tasks, "rows") for index in range(1, count + 1)]
    assert sorted(place for part in parts for place in part) == list(range(len(tasks)))
    owners = [{tasks[place] for place in part} for part in parts]
    assert sum(map(len, owners)) == len(set(tasks))
    sizes = list(map(len, parts))
    assert min(sizes) > 0
    # The shard with the fewest rows gets the next task: no two differ by more than the largest task.
    assert max(sizes) - min(sizes) <= max(Counter(tasks).values())


@pytest.mark.parametrize("text", ["0/3", "4/3", "x", "1", "1/0", "1/99999", "-1/3", "1/2/3"])
def test_wrong_shards_are_refused(text: str) -> None:
    with pytest.raises(EdgeError) as caught:
        parse_shard(text)
    assert caught.value.option == "--shard"


def test_one_of_one_is_the_whole() -> None:
    assert parse_shard("1/1") is None
    assert parse_shard(" 2 / 3 ") == Shard(2, 3)


@pytest.fixture(scope="module")
def replays(tiny_q4: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a replay of one machine, and its three shards."""
    folder = tmp_path_factory.mktemp("shards")
    assert evaluate(tiny_q4, folder / "whole.json")[0] == 0
    for i in (1, 2, 3):
        assert evaluate(tiny_q4, folder / f"s{i}.json", "--shard", f"{i}/3")[0] == 0
    return folder


@pytest.mark.slow
def test_the_joined_replay_is_that_of_one_machine(replays: Path, tmp_path: Path) -> None:
    out = tmp_path / "joined.json"
    assert edge("join", replays / "s3.json", replays / "s1.json", replays / "s2.json", "--out", out)[0] == 0
    whole, joined = read(replays / "whole.json"), read(out)
    assert list(joined) == list(whole)
    for name in whole.keys() - OF_MACHINES:
        assert json.dumps(joined[name]) == json.dumps(whole[name]), name
    assert joined["provenance"] == whole["provenance"] | {"shards": 3}
    for name in ("prompt_tokens", "completion_tokens", "forced_tokens"):
        assert joined["engine"][name] == whole["engine"][name]
    # It is the result of that run: the same command has nothing more to do.
    before = out.read_bytes()
    done = command_line.run(
        *("eval", "--model", whole["model_path"], "--replay", embedded_rows(), "--out", out, *EXACT)
    )
    assert done.returncode == 0 and "is already complete" in done.stderr
    assert out.read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_shard_resumes(replays: Path, tiny_q4: Path, tmp_path: Path) -> None:
    """The journal of a shard continues that shard, and no other one."""
    shard = read(replays / "s2.json")
    journal = tmp_path / "s2.json.journal"
    with Journal.open(journal, shard["run"]) as kept:
        for step in shard["per_step"][:2]:
            kept.append(step)
    code, said = evaluate(tiny_q4, tmp_path / "s2.json", "--shard", "1/3")
    assert code == 1 and '--shard was "2/3", is "1/3"' in said
    assert evaluate(tiny_q4, tmp_path / "s2.json", "--shard", "2/3")[0] == 0
    resumed = read(tmp_path / "s2.json")
    assert resumed["per_step"] == shard["per_step"]
    assert resumed["engine"]["steps_done_before"] == 2
    assert not journal.exists()


def changed(path: Path, out: Path, change: Any) -> Path:
    value = read(path)
    change(value)
    out.write_text(json.dumps(value), encoding="utf-8")
    return out


def everywhere(value: dict[str, Any], **fields: object) -> None:
    """Change fields wherever a shard names them, as another run would."""
    for place in (value, value["run"], value["sampling"], value["provenance"]):
        place.update({name: field for name, field in fields.items() if name in place})


@pytest.mark.slow
def test_shards_that_do_not_fit_are_refused_in_one_line(replays: Path, tmp_path: Path) -> None:
    one, two, three = (replays / f"s{i}.json" for i in (1, 2, 3))
    twin = changed(two, tmp_path / "twin.json", lambda value: None)
    model = changed(two, tmp_path / "model.json", lambda v: everywhere(v, model_sha256="0" * 64))
    tokens = changed(two, tmp_path / "tokens.json", lambda v: everywhere(v, max_tokens=17))
    build = changed(two, tmp_path / "build.json", lambda v: v["provenance"].update(llama_cpp="ggml 9; CPU"))
    short = changed(two, tmp_path / "short.json", lambda v: (v["per_step"].pop(), v.pop("aggregate")))
    rows = changed(two, tmp_path / "rows.json", lambda v: everywhere(v, rows_sha256="1" * 64))
    other = changed(
        two, tmp_path / "other.json", lambda v: v["shard"].update(places=read(one)["shard"]["places"])
    )
    for shards, wanted in (
        ([one, two], f"{one}: is shard 1 of 3; shard 3 of 3 not given"),
        ([one, two, three, twin], f"{twin}: is shard 2 of 3, and so is {two}"),
        ([one, model, three], f"{model}: cannot be joined with {one}: another model"),
        (
            [one, tokens, three],
            f"{tokens}: cannot be joined with {one}: another run (--max-tokens was 16, is 17)",
        ),
        ([one, build, three], f"{build}: cannot be joined with {one}: another build of llama.cpp"),
        ([one, rows, three], f"{rows}: cannot be joined with {one}: another set of rows"),
        ([one, short, three], f"{short}: has {len(read(two)['per_step']) - 1} of the "),
        ([one, other, three], f"{other}: has row 1, which {one} has too"),
        ([replays / "whole.json", two], f"{replays / 'whole.json'}: is not a shard"),
        ([tmp_path / "none.json"], f"{tmp_path / 'none.json'}: cannot be read"),
    ):
        code, said = edge("join", *shards, "--out", tmp_path / "out.json")
        assert code == 1 and wanted in said and "\n" not in said, said
        assert not (tmp_path / "out.json").exists()
    code, said = edge("join", one, two, three, "--out", two)
    assert code == 1 and "is an input of this command" in said


@pytest.mark.slow
def test_a_shard_is_called_a_shard(replays: Path, tmp_path: Path) -> None:
    part = compare([replays / "s1.json"], replays / "whole.json").parts[0]
    steps = len(read(replays / "s1.json")["per_step"])
    assert (
        f"Our result is shard 1 of 3: it has {steps} of {LIMIT} steps. `edge join` puts the shards together."
        in part.notes
    )
    done = command_line.run("rank", replays / "whole.json", replays / "s1.json")
    assert done.returncode == 0 and "is shard 1 of 3" in done.stdout
    code, said = edge("report", replays / "s1.json", "--out", tmp_path / "page.html")
    assert code == 1 and "is a shard of a result" in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rows", "text"])
def test_the_joined_measurement_is_that_of_one_machine(
    kind: str, tiny_q4: Path, tiny_bf16: Path, tmp_path: Path
) -> None:
    """Also with the distributions of the base for all rows in one file."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"ls -la {i}; cat notes-{i}.txt" for i in range(60)), encoding="utf-8")
    data: dict[str, Any] = (
        {"replay": embedded_rows(), "limit": 8} if kind == "rows" else {"text": text, "chunk": 32}
    )
    whole = measure(tiny_q4, tmp_path / "whole.json", base=tiny_bf16, **data)
    kept = base_scores(tiny_bf16, tmp_path / "all.base-scores", **data)
    for i, base in ((1, tiny_bf16), (2, kept)):
        measure(tiny_q4, tmp_path / f"m{i}.json", base=base, chosen=Chosen(shard=Shard(i, 2)), **data)
    joined = join_measurements([tmp_path / "m2.json", tmp_path / "m1.json"], tmp_path / "joined.json")
    assert joined == read(tmp_path / "joined.json")
    for name in read(tmp_path / "whole.json").keys() - {*OF_MACHINES, "measure_time_sec", "method"}:
        assert json.dumps(joined[name]) == json.dumps(whole[name]), name
    assert joined["method"] | {"tokens_decoded": 0} == whole["method"] | {"tokens_decoded": 0}
    for number, (change, told) in enumerate(
        (
            (lambda v: v["aggregate"].update(nll=9.0), "aggregate.nll is 9.0, but its positions give"),
            (lambda v: v["per_step"][0].update(kl_mean=0.5), "per_step[0].kl_mean is 0.5, but its positions"),
            (lambda v: v["run"].update(shard="1/2"), "says that it is shard 2/2, and that its run was 1/2"),
            (lambda v: v["provenance"].update(model_sha256="0" * 64), "names more than one model file"),
        )
    ):
        bad = changed(tmp_path / "m2.json", tmp_path / f"bad{number}.json", change)
        code, said = edge("join", tmp_path / "m1.json", bad, "--out", tmp_path / "out.json")
        assert code == 1 and f"{bad}: " in said and told in said and "\n" not in said
    code, said = edge("join", tmp_path / "m1.json", "--out", tmp_path / "out.json")
    assert code == 1 and "is shard 1 of 2; shard 2 of 2 not given" in said


@pytest.mark.slow
def test_the_answered_steps_are_those_of_the_shard(replays: Path) -> None:
    whole = [step_key(step) for step in read(replays / "whole.json")["per_step"]]
    for i in (1, 2, 3):
        shard = read(replays / f"s{i}.json")
        assert [step_key(step) for step in shard["per_step"]] == [whole[p] for p in shard["shard"]["places"]]
