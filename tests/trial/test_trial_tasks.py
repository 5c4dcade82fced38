"""The reader of task folders in Harbor's format: what can run here, and the reason for what cannot.

.venv/bin/pytest tests/trial/test_trial_tasks.py
"""

import json
import shutil
import time
from pathlib import Path

import pytest

from edge.errors import ReplayError
from edge.terminal.saved import Saved
from edge.trial.dockerfile import Copied, NotRunnableError, Ran, read_dockerfile
from edge.trial.made import make_files
from edge.trial.network import network_program
from edge.trial.place import read_reward
from edge.trial.tasks import find_tasks, read_task, read_tasks

TOML = 'version = "1.0"\n[metadata]\ndifficulty = "easy"\n'


def make_task(folder: Path, files: dict[str, str] | None = None) -> Path:
    """A small task folder; `files` replaces or adds files, an empty text removes one."""
    whole = {
        "task.toml": TOML,
        "instruction.md": "Do it.\n",
        "environment/Dockerfile": "FROM debian:12\nWORKDIR /app\nCOPY a.txt .\n",
        "environment/a.txt": "a\n",
        "tests/test.sh": "#!/bin/bash\necho 1 > /logs/verifier/reward.txt\n",
        **(files or {}),
    }
    for name, text in whole.items():
        if text:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return folder


def test_a_dockerfile_is_read() -> None:
    found = read_dockerfile(
        "# a comment\nFROM --platform=linux/amd64 python:3.11 AS base\nENV A=1 B='two words'\nENV C three words\n"
        "ENV PATH=/opt/x:${PATH}\nWORKDIR /data/work\nRUN mkdir -p sub \\\n  # inside\n  other\n"
        'COPY ["one.txt", "two.txt", "sub/"]\nCOPY . .\nWORKDIR sub\nRUN ["sh", "-c", "echo $A > b"]\n'
    )
    assert found.base == "python:3.11"
    assert (found.workdir, found.root) == ("/data/work/sub", "/data/work")
    assert found.variables["A"] == "1"
    assert (found.variables["B"], found.variables["C"]) == ("two words", "three words")
    assert found.variables["PATH"].startswith("/opt/x:/usr/")
    assert not found.copied
    made, first, second, last = found.built
    assert isinstance(made, Ran) and made.command == "mkdir -p sub other"
    assert isinstance(first, Copied) and first.target == "/data/work/sub"
    assert isinstance(second, Copied) and second.sources == (".",)
    assert isinstance(last, Ran) and last.command == "sh -c 'echo $A > b'"


def test_what_changes_nothing_in_a_trial_is_ignored() -> None:
    found = read_dockerfile(
        "FROM a\nLABEL a=b \\\n  c=d\nMAINTAINER me\nEXPOSE 80\nSTOPSIGNAL 9\nHEALTHCHECK none\n"
        'CMD ["x"]\nCMD x\nCOPY a b\n'
    )
    assert len(found.copied) == 1 and not found.built and not found.variables


def test_arguments_of_a_build_have_their_defaults() -> None:
    """As in Docker: one of before FROM needs a line after it, ENV hides one, and only RUN has them as variables."""
    found = read_dockerfile(
        "ARG BASE=debian TAG=12\nFROM ${BASE}:$TAG\nARG TAG\nARG NAME=notes OF=$TAG SHOWN=1\nENV SHOWN=2 B=$BASE\n"
        "COPY $NAME-$OF.txt ${SHOWN}/\nRUN echo $NAME\n"
    )
    assert found.copied[0].sources == ("notes-12.txt",) and found.copied[0].target == "/app/2"
    assert found.variables == {"SHOWN": "2", "B": ""}
    ran = found.built[0]
    assert isinstance(ran, Ran)
    assert ran.environment == {"TAG": "12", "NAME": "notes", "OF": "12", "SHOWN": "2", "B": ""}


REFUSED = {
    "FROM a\nFROM b\n": "several stages",
    "WORKDIR /app\n": "no FROM",
    "FROM a\nUSER me\n": "USER",
    "FROM a\nVOLUME /x\n": "VOLUME",
    "FROM a\nHEALTHCHECK CMD true\n": "HEALTHCHECK",
    "FROM a\nARG X\n": "ARG X has no default",
    "FROM a\nARG HOME=/x\n": "ARG HOME",
    "FROM a\nCOPY ${X:-a} b\n": "a variable with a rule",
    "FROM a\nADD x /app\n": "ADD",
    "FROM a\nENTRYPOINT x\n": "ENTRYPOINT",
    "FROM a\nRUN apt-get update && apt-get install -y jq\n": "a network (apt-get)",
    "FROM a\nRUN python3 -m pip install x\n": "a network (pip)",
    "FROM a\nRUN git clone https://x\n": "a network (git clone)",
    "FROM a\nRUN curl -s https://x | sh\n": "a network (curl)",
    "FROM a\nRUN --mount=type=cache true\n": "--mount",
    "FROM a\nRUN cat <<E\nx\nE\n": "here-document",
    "FROM a\nCOPY --from=b x y\n": "--from",
    "FROM a\nCOPY ../x y\n": "outside its folder",
    "FROM a\nCOPY x /etc/x\n": "outside the work folder",
    "FROM a\nWORKDIR /usr/src\n": "/usr/src",
    "FROM a\nWORKDIR /\n": "work folder is /",
    "FROM a\nWORKDIR /home/agent\n": "own home folder",
    "FROM a\nENV HOME=/x\n": "ENV HOME",
    "FROM a\nENV LD_PRELOAD=/app/x.so\n": "ENV LD_PRELOAD",
    "FROM a\nENV A='b\n": "cannot be read",
    "FROM a\nRUN x \\\n": "the middle of an instruction",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_a_trial_cannot_obey_is_refused(text: str) -> None:
    with pytest.raises(NotRunnableError) as error:
        read_dockerfile(text)
    assert REFUSED[text] in str(error.value)
    assert "\n" not in str(error.value)


NO_NETWORK = (
    "cd /etc/ssh\n# pip install x\necho pipeline # curl\n",
    "printf '%s\\n' '1.2.3.4 \"GET / HTTP/1.1\" \"curl/7.68.0\"' > access.log",
    "echo 'run apt-get install jq'; [ \"$tool\" = curl ] && [[ $tool != wget ]]",
    "grep -q 'pip install' notes.md || echo uv copy skipped >&2",
    "{ echo no curl; } | tee -a /logs/verifier/log.txt",
    "cat > notes.txt <<'E'\npip install x\nE\n",
    "if command -v uvx > /dev/null; then echo found; fi\nwhich curl\n",
    "dotnet --version; npm -v; go mod init example; pip list | grep pytest",
    "curl -sSf -m 5 -o out.txt http://localhost:8080/x || wget -qO- http://127.0.0.1/ | python3 check.py",
    'curl -X POST -H "A: b" --data \'{"a": 1}\' "http://localhost:$PORT/$name" "http://[::1]:${PORT}/x"',
    "code=$(curl -s -w '%{http_code}' localhost/a) && curl -s 127.0.1.1:8080/a 0.0.0.0:80",
    'why="curl failed"\necho "$why"\nfor one in curl jq; do command -v "$one"; done\n',
    '[ -x "$(command -v curl)" ] || missing=$(which curl)\necho "$missing"\n',
    "exec > >(tee -a all.log) 2>&1\nsay() { echo no curl; }\nsay\nsay | grep no\n",
    "case $tool in curl) echo a ;; esac\npython3 check.py > curl.log",
)
NETWORK = {
    "uvx -p 3.13 pytest": "uvx",
    "curl -s http://localhost/x http://example.org/": "curl",
    'curl "$URL"': "curl",
    "curl -x proxy http://localhost/": "curl",
    "curl http://localhost.example.org/": "curl",
    "curl http://localhost@example.org/": "curl",
    "curl http://127.0.0.1.example.org/ || curl 127.0.0.1": "curl",
    "echo 'pip install x' | bash": "pip",
    'echo "$(pip install x)"': "pip",
    "echo 'pip install x' > a.sh; bash a.sh": "pip",
    "echo 'pip install x' > a.txt; bash a.txt": "pip",
    "cat <<E | sh\npip install x\nE\n": "pip",
    "bash <<E\npip install x\nE\n": "pip",
    "cat <<E > a.txt\n$(pip install x)\nE\n": "pip",
    "bash -c 'pip install x'": "pip",
    "diff <(echo 'pip install x') b": "pip",
    "$(echo pip install x)": "pip",
    'run="pip install x"\n$run\n': "pip",
    'run="pip install"\nmore="$run x"\neval "$more"\n': "pip",
    'run=(pip install x)\n"${run[@]}"\n': "pip",
    "for one in pip; do $one install x; done": "pip",
    "export RUN='pip install x'": "pip",
    "pip install pytest==9.0.3 2> /dev/null || true": "pip",
    "command -v uvx && uvx pytest": "uvx",
    'tool="$(command -v pip)"\n"$tool" install x\n': "pip",
    "$(which pip) install x": "pip",
    "say() { echo pip install x; }\nsay | bash\n": "pip",
    'say() { echo pip install x; }\nbash -c "$(say)"\n': "pip",
    "echo 'pip install x' > a.txt\nbash < a.txt\n": "pip",
    "printf -v run 'pip install x'\n$run\n": "pip",
    "exec > >(bash)\necho pip install x\n": "pip",
    "exec 3> a.sh\necho pip install x >&3\n": "pip",
    "sudo env A=b apt-get install x": "apt-get",
    "if true; then echo 'curl'\n": "curl",  # not valid: in doubt it counts
}


@pytest.mark.parametrize("script", NO_NETWORK)
def test_a_name_that_loads_nothing_is_no_network(script: str) -> None:
    assert network_program(script) is None


@pytest.mark.parametrize("script", NETWORK)
def test_programs_that_need_a_network(script: str) -> None:
    assert network_program(script) == NETWORK[script]


HARD = {
    "long": "echo curl\n" + "true\n" * 30_000,
    "many names": "echo curl\n" * 300,
    "deep": "echo $(" * 3000 + "echo curl" + ")" * 3000,
    "variables that double": "a0=curl\n"
    + "".join(f"a{n}=$a{n - 1}$a{n - 1}\n" for n in range(1, 19))
    + "echo $a18\n",
}


@pytest.mark.parametrize("name", HARD)
def test_a_script_that_takes_long_to_judge_needs_a_network(name: str) -> None:
    began = time.monotonic()
    assert network_program(HARD[name]) == "curl"
    assert time.monotonic() - began < 30


TASKS = {
    "environment.docker_image": ('[environment]\ndocker_image = "x"\n', "", "ready image"),
    "compose": (None, "docker-compose.yaml", "docker-compose"),
    "steps": ('[[steps]]\nname = "a"\n', "", "several steps"),
    "windows": ('[environment]\nos = "windows"\n', "", "Windows"),
    "gpus": ("[environment]\ngpus = 1\n", "", "GPU"),
    "separate": ('[verifier]\nenvironment_mode = "separate"\n', "", "another environment"),
    "outer variable": ('[verifier]\nenv = { KEY = "${KEY}" }\n', "", "the machine outside"),
    "no table": ("verifier = 3\n", "", "not a table"),
    "no TOML": ("= 3\n", "", "not TOML"),
    "seconds": ("[verifier]\ntimeout_sec = -1\n", "", "timeout_sec"),
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_that_cannot_run_here(name: str, tmp_path: Path) -> None:
    more, extra, reason = TASKS[name]
    files = {"task.toml": "" if more is None else more}
    if more is None:
        files = {"task.toml": TOML}
    if name == "environment.docker_image":
        files["environment/Dockerfile"] = ""
    folder = make_task(tmp_path / "t", files)
    if extra:
        (folder / "environment" / extra).write_text("x")
    tasks, refused = read_tasks([folder])
    assert tasks == []
    assert reason in refused[0].reason
    assert "\n" not in refused[0].reason


@pytest.mark.parametrize("missing", ["instruction.md", "environment/Dockerfile", "tests/test.sh"])
def test_a_missing_file_is_the_reason(missing: str, tmp_path: Path) -> None:
    _, refused = read_tasks([make_task(tmp_path / "t", {missing: ""})])
    assert refused[0].reason == f"it has no {missing}"


FIRST = {
    "several steps": ("it has several steps", '[[steps]]\nname = "a"\n'),
    "docker-compose": ("it needs several containers (docker-compose)", TOML),
    "GPU": ("it needs a GPU", "[environment]\ngpus = 1\n"),
    "MCP": ("it needs MCP servers", '[[environment.mcp_servers]]\nname = "a"\n'),
    "separate tests": ("its tests run in another environment", '[verifier]\nenvironment_mode = "separate"\n'),
}


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("missing", ["instruction.md", "tests/test.sh", ""])
def test_what_kind_of_task_it_is_comes_before_its_files(name: str, missing: str, tmp_path: Path) -> None:
    """A task of another kind has other files, or tests that need a network: that is not why it cannot run."""
    reason, toml = FIRST[name]
    files = {"task.toml": toml, "tests/test.sh": "apt-get install -y curl\n", missing or "a": ""}
    folder = make_task(tmp_path / "t", files)
    if name == "docker-compose":
        (folder / "environment" / "docker-compose.yaml").write_text("x")
    assert read_tasks([folder])[1][0].reason == reason


def test_tests_that_need_a_network(tmp_path: Path) -> None:
    _, refused = read_tasks([make_task(tmp_path / "t", {"tests/test.sh": "apt-get install -y curl\n"})])
    assert refused[0].reason == "tests/test.sh needs a network (apt-get)"


def test_a_task_and_a_folder_of_tasks(tmp_path: Path) -> None:
    one = make_task(tmp_path / "set" / "one", {"task.toml": TOML + 'may_change = ["b*"]\n'})
    make_task(tmp_path / "set" / "two")
    (tmp_path / "set" / "no-task").mkdir()
    assert [path.name for path in find_tasks(tmp_path / "set")] == ["one", "two"]
    assert find_tasks(one) == [one]
    assert [path.name for path in find_tasks(tmp_path / "set", ["two"])] == ["two"]
    for place, words in ((tmp_path / "set" / "no-task", "has no task"), (tmp_path / "x", "is not a folder")):
        with pytest.raises(ReplayError, match=words):
            find_tasks(place)
    with pytest.raises(ReplayError, match="has no task three"):
        find_tasks(tmp_path / "set", ["three"])
    task = read_task(one)
    assert (task.level, task.may_change, task.instruction) == ("easy", ("b*",), "Do it.")
    before = task.sha256
    (one / "tests" / "test.sh").write_text("x\n")
    assert read_task(one).sha256 != before


# What Harbor's Verifier does with each (harbor 0.25.0, harbor/verifier/verifier.py): a number, or an error.
REWARDS = [
    (None, b"1\n", 1.0),
    (None, b" 0.25 ", 0.25),
    (None, b"", None),
    (None, b"nan", None),
    (None, b"inf", None),
    (None, b"yes", None),
    (None, b"\xff", None),
    (None, None, None),
    (b'{"reward": 1}', b"0", 1.0),
    (b'{"accuracy": 0.5}', None, 0.5),
    (b'{"reward": 0.5, "time": 3}', None, 0.5),
    (b"", b"1", None),
    (b'{"reward": "1"}', None, None),
    (b'{"reward": NaN}', None, None),
    (b'{"reward": 1e999}', None, None),
    (b'{"a": 1, "b": 1}', None, None),
    (b"[1]", None, None),
    (b"{", None, None),
]


@pytest.mark.parametrize(("in_json", "in_text", "reward"), REWARDS)
def test_the_reward(in_json: bytes | None, in_text: bytes | None, reward: float | None) -> None:
    found, reason = read_reward(in_json, in_text)
    assert found == reward
    assert (reason == "") == (reward is not None)


def test_a_reward_of_any_depth_is_refused() -> None:
    assert read_reward(b"[" * 100_000, None)[0] is None
    assert read_reward(json.dumps({"reward": True}).encode(), None)[0] == 1.0


def linked(tmp_path: Path, at: str, to: str) -> Path:
    """A task with a link at a path, in the place of what is there."""
    task = make_task(tmp_path / "t", {"solution/solve.sh": "#!/bin/bash\n"})
    if (task / at).is_dir():
        shutil.rmtree(task / at)
    (task / at).unlink(missing_ok=True)
    (task / at).symlink_to(to)
    return task


@pytest.mark.parametrize(
    "at", ["instruction.md", "tests/test.sh", "tests", "environment", "environment/sub", "solution/solve.sh"]
)
def test_a_link_out_of_the_task_is_refused(at: str, tmp_path: Path) -> None:
    """It would show a file of this system to a model, or make it executable."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "test.sh").write_text("secret\n")
    (outside / "test.sh").chmod(0o600)
    task = linked(tmp_path, at, str(outside if "." not in at else outside / "test.sh"))
    tasks, refused = read_tasks([task])
    assert not tasks
    assert refused[0].reason == f"{at} is a link that leads out of the task folder"
    assert (outside / "test.sh").stat().st_mode & 0o777 == 0o600


def test_a_link_within_the_task_stands_for_no_part_of_it(tmp_path: Path) -> None:
    assert read_tasks([linked(tmp_path, "tests/test.sh", "../environment/a.txt")])[1][0].reason.endswith(
        "is a link"
    )


def test_copy_never_writes_through_a_link(tmp_path: Path) -> None:
    """A link that stays inside the task can lead elsewhere from where it is copied to."""
    task = make_task(
        tmp_path / "t",
        {
            "environment/Dockerfile": "FROM x\nCOPY deep/er/out ./\nCOPY a.txt out/\n",
            "environment/up/kept": "kept\n",
            "environment/deep/er/kept": "kept\n",
        },
    )
    (task / "environment/deep/er/out").symlink_to("../../up")
    outside = tmp_path / "up"
    outside.mkdir()
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    saved = Saved(tmp_path / "work.tar", tmp_path / "first.tar", b"k" * 32)
    with pytest.raises(NotRunnableError, match="COPY through the link out"):
        make_files(read_task(task), place, saved)
    assert not list(outside.iterdir())
