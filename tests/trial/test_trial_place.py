"""Trials of small tasks in the real sandbox: what a task has there, where its tests are, what counts.

.venv/bin/pytest tests/trial/test_trial_place.py
"""

import shutil
from pathlib import Path

import pytest
from planted import planted, state_of
from test_trial_tasks import TOML, make_task

from edge.agent.loop import Limits
from edge.compare.trials import Trial
from edge.trial.attempt import Attempt, Setting, try_task
from edge.trial.tasks import read_task
from edge.trial.workers import Script

pytestmark = pytest.mark.skipif(
    not (shutil.which("tmux") and shutil.which("bwrap")), reason="needs tmux and bubblewrap"
)


def tried(folder: Path, script: Script, records: Path) -> Trial:
    return try_task(Attempt(read_task(folder), 1), Setting(records, Limits()), script)


def test_a_task_has_its_files_and_its_tests_come_later(tmp_path: Path) -> None:
    """COPY, ENV, RUN, WORKDIR and permissions hold; /tests is not there before, nor the home folder of before."""
    task = make_task(
        tmp_path / "t",
        {
            "task.toml": TOML + 'may_change = ["seen", "home"]\n[verifier]\nenv = { WANTED = "red" }\n',
            "environment/Dockerfile": "FROM x\nWORKDIR /work place\n".replace(" place", "place")
            + "COPY a.txt sub/\nENV COLOR=red\nRUN chmod 600 sub/a.txt && echo $COLOR > color\n",
            "solution/solve.sh": "#!/bin/bash\nls -d /tests /logs > seen 2>&1\npwd >> seen\ntouch ~/left\n",
            "tests/test.sh": "#!/bin/bash\nset -e\necho 0 > /logs/verifier/reward.txt\n"
            '[ "$PWD" = /workplace ]\n[ "$COLOR$WANTED" = redred ]\n[ "$(cat color)" = red ]\n'
            "[ $(stat -c %a sub/a.txt) = 600 ]\n[ $(grep -c 'No such file' seen) = 2 ]\n[ ! -e ~/left ]\n"
            "tail -n 1 seen | grep -x /workplace\n[ -x /tests/test.sh ]\n"
            "echo '{\"reward\": 1.0}' > /logs/verifier/reward.json\n",
        },
    )
    found = tried(task, "oracle", tmp_path)
    assert (found["state"], found["reason"], found["reward"]) == ("solved", "", 1.0)
    nop = tried(task, "nop", tmp_path)
    assert (nop["state"], nop["ended"], nop["reward"]) == ("failed", "wrong", 0.0)


def test_run_and_copy_in_their_order(tmp_path: Path) -> None:
    """A COPY replaces what a RUN before it wrote, and a RUN sees what a COPY before it brought."""
    task = make_task(
        tmp_path / "t",
        {
            "environment/Dockerfile": "FROM x\nCOPY a.txt kept.txt\nRUN cat kept.txt a.txt > seen 2>&1 || "
            "mkdir sub there && echo old > b.txt; chmod 444 b.txt\nCOPY a.txt b.txt ./\nCOPY a.txt there\n"
            "COPY tree sub\nCOPY tree/two 'new folder/in it'\nRUN cat a.txt b.txt >> seen\n",
            "environment/b.txt": "b\n",
            "environment/tree/one": "1\n",
            "environment/tree/deep/er": "2\n",
            "environment/tree/two": "2\n",
            "tests/test.sh": "#!/bin/bash\nset -e\necho 0 > /logs/verifier/reward.txt\n"
            "[ \"$(sed 2d seen)\" = $'a\\na\\nb' ]\nsed -n 2p seen | grep 'No such file'\n"
            "[ \"$(find . -type f | sort | xargs -d '\\n')\" = './a.txt ./b.txt ./kept.txt ./new folder/in it ./seen "
            "./sub/deep/er ./sub/one ./sub/two ./there/a.txt' ]\n"
            "[ \"$(stat -c %Y a.txt sub/one)\" = $'1700000000\\n1700000000' ]\n[ ! -e ~/.beside/copied ]\n"
            "echo 1 > /logs/verifier/reward.txt\n",
        },
    )
    (task / "environment/tree/link").symlink_to("one")
    found = tried(task, "nop", tmp_path)
    assert (found["state"], found["reason"]) == ("solved", "")


GREET = "#!/bin/bash\nPATH=/app/bin:$PATH\ngreet && reward=1 || reward=0\necho $reward > /logs/verifier/reward.txt\n"
MAKES = {
    "a path of the instruction": ("Make a program at /app/bin/greet.\n", "", ""),
    "a word of the instruction": ("Make a program greet.\n", "", "tar -xf all.tar\n"),
    "what the solution writes": ("Make it.\n", "", "cd bin && install -m 755 /dev/null greet\n"),
    "a module": ("Make it.\n", "python3 -m no_such_module", "mkdir no_such_module\n"),
    "a module of the instruction": ("Write no_such_module.py\n", "python3 -m no_such_module", ""),
}
CALLS = {
    "go": ("Repair all; go on until the tests pass.\n", "go test", "sed -i s/a/b/ main.go\ngo build\n"),
    "gox": ("Use gox.\n", "gox test", "apt-get install -y gox; gox build; ls /usr/local/bin/gox /opt/gox\n"),
    "no_such_module": (
        "Use no_such_module/other.\n",
        "python3 -m no_such_module",
        "python3 -c 'import no_such_module'\n",
    ),
}


def calling(folder: Path, instruction: str, command: str, solution: str) -> Path:
    """A task whose tests call a command."""
    files = {
        "instruction.md": instruction,
        "tests/test.sh": GREET.replace("greet &&", f"{command or 'greet'} &&"),
    }
    return make_task(folder, {**files, "solution/solve.sh": solution and f"#!/bin/bash\n{solution}"})


@pytest.mark.parametrize("name", MAKES)
def test_a_program_that_the_model_is_to_make_is_its_failure(name: str, tmp_path: Path) -> None:
    found = tried(calling(tmp_path / "t", *MAKES[name]), "nop", tmp_path)
    assert (found["state"], found["ended"]) == ("failed", "wrong"), found["reason"]


@pytest.mark.parametrize("name", CALLS)
def test_a_program_that_the_solution_only_calls_is_not_here(name: str, tmp_path: Path) -> None:
    found = tried(calling(tmp_path / "t", *CALLS[name]), "nop", tmp_path)
    assert (found["state"], found["reason"]) == ("not run", f"the tests need {name}, which is not here")


CANNOT = {
    "RUN fails in the sandbox: oh": {"environment/Dockerfile": "FROM x\nRUN echo oh; false\n"},
    "COPY of b.txt, which environment/ does not have": {"environment/Dockerfile": "FROM x\nCOPY b.txt .\n"},
    "the tests wrote no reward": {"tests/test.sh": "#!/bin/bash\ntrue\n"},
    "the tests need no-such-program, which is not here": {
        "tests/test.sh": "#!/bin/bash\nno-such-program\necho 0 > /logs/verifier/reward.txt\n"
    },
    "the tests did not end in 1 s": {
        "task.toml": "[verifier]\ntimeout_sec = 1\n",
        "tests/test.sh": "#!/bin/bash\nsleep 60\n",
    },
}


@pytest.mark.parametrize("reason", CANNOT)
def test_what_says_nothing_about_a_model_is_neither_solved_nor_failed(reason: str, tmp_path: Path) -> None:
    found = tried(make_task(tmp_path / "t", CANNOT[reason]), "nop", tmp_path)
    assert found["reason"] == reason
    assert (found["state"], found["reward"]) == ("wall" if "did not end" in reason else "not run", None)


def test_a_missing_script(tmp_path: Path) -> None:
    found = tried(make_task(tmp_path / "t"), "oracle", tmp_path)
    assert (found["state"], found["reason"]) == ("not run", "it has no solution/solve.sh")


def test_destructive_answers_change_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that deletes and overwrites all it can reach: a planted tree, the home, /tmp, edge's own folders."""
    with planted(tmp_path, monkeypatch) as roots:
        _destroy_all(tmp_path, [*roots, tmp_path / "t"])


def _destroy_all(tmp_path: Path, roots: list[Path]) -> None:
    text = "#!/bin/bash\nexec 2> /dev/null\n" + "".join(
        f"rm -rf {place}\necho x > {place}\necho x > {place}/file\nchmod -R 777 {place}\nmv {place} {place}-gone\n"
        for place in (*roots, "/home", "/tmp", "/root", "/etc", "~", '"$HOME"', "/app/*", "/var")
    )
    task = make_task(
        tmp_path / "t",
        {
            "task.toml": TOML + "may_change = []\n",
            "solution/destructive.sh": text + "kill -9 -1\n",  # the sandbox ends
            "tests/test.sh": "#!/bin/bash\n[ -e a.txt ]; echo $((1 - $?)) > /logs/verifier/reward.txt\n",
        },
    )
    before = {root: state_of(root) for root in roots}
    found = tried(task, "destructive", tmp_path)
    assert {root: state_of(root) for root in roots} == before
    assert not list(tmp_path.glob("*-gone"))
    assert (found["state"], found["ended"]) in (("failed", "destructive"), ("solved", "")), found["reason"]


COMPARES = "cmp -s answer /tests/expected && echo 1 > /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt\n"
LINKS = {
    "absolute": "ln -s /tests/expected answer",
    "relative": "ln -s ../tests/expected answer",
    "the copy itself": "ln -s /home/agent/.beside/tests/expected answer",
    "through /proc": "ln -s /proc/self/root/tests/expected answer",
    "through another link": "ln -s /usr up; ln -s up/../tests/expected answer",
    "through the root": "ln -s / up; ln -s up/tests/expected answer",
}


@pytest.mark.parametrize("how", LINKS)
def test_a_link_to_the_expected_file_is_no_answer(how: str, tmp_path: Path) -> None:
    files = {
        "tests/expected": "42\n",
        "tests/test.sh": "#!/bin/bash\n" + COMPARES,
        "solution/solve.sh": f"#!/bin/bash\n{LINKS[how]}\n",
    }
    found = tried(make_task(tmp_path / "t", files), "oracle", tmp_path)
    assert (found["state"], found["ended"], found["reward"]) == ("failed", "wrong", 0.0)


def test_a_link_to_what_the_test_reads_is_no_answer_and_other_links_stay(tmp_path: Path) -> None:
    files = {
        "tests/test.sh": "#!/bin/bash\n[ -L same ] && [ -L up ] && [ -L none ] || exit 1\n"
        "echo 42 | cmp -s - answer; echo $((1 - ($? > 0))) > /logs/verifier/reward.txt\n",
        "solution/solve.sh": "#!/bin/bash\nln -s a.txt same; ln -s /usr/bin up; ln -s /dev/null none\n"
        "[ -e right ] && echo 42 > answer || ln -s /dev/stdin answer\n",
    }
    found = tried(make_task(tmp_path / "t", files), "oracle", tmp_path)
    assert (found["state"], found["ended"], found["reward"]) == ("failed", "wrong", 0.0)
    right = {"environment/right": "x\n", "environment/Dockerfile": "FROM x\nCOPY . .\n"}
    found = tried(make_task(tmp_path / "right", {**files, **right}), "oracle", tmp_path)
    assert found["state"] == "solved"


FAULTS = {
    "a module that the model's program needs": (
        "echo 'import nothere' > prog.py",
        "python3 prog.py && echo 1 > /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt",
    ),
    "a program that the model was to make": (
        "true",
        "PATH=$PATH:/app; greet > out && echo 1 > /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt",
    ),
    "a status of tests that were not late": ("true", "echo 0 > /logs/verifier/reward.txt; exit 124"),
    "a folder that cannot be written": (
        "mkdir no; echo > no/x; chmod 500 no",
        "echo 0 > /logs/verifier/reward.txt",
    ),
    "links in folders that cannot be written": (
        "mkdir -p a/b c; ln -s /etc/passwd a/b/l; ln -s /usr c/u; touch c/d; chmod 555 a/b a c",
        "[ -L a/b/l ] && [ -L c/u ] && echo 0 > /logs/verifier/reward.txt || echo 1 > /logs/verifier/reward.txt",
    ),
    "the folder of WORKDIR is gone": ("cd ..; rm -rf sub", "echo 0 > /logs/verifier/reward.txt"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_model_counts_as_failed(fault: str, tmp_path: Path) -> None:
    solve, test = FAULTS[fault]
    files = {
        "instruction.md": "Make the script greet.\n",
        "environment/Dockerfile": "FROM x\nWORKDIR /app\nWORKDIR /app/sub\n",
        "tests/test.sh": f"#!/bin/bash\n{test}\n",
        "solution/solve.sh": f"#!/bin/bash\n{solve}\n",
    }
    found = tried(make_task(tmp_path / "t", files), "oracle", tmp_path)
    assert (found["state"], found["ended"], found["reward"]) == ("failed", "wrong", 0.0)
    assert "did not end" not in found["reason"]


_LATE = "setsid bash -c 'while sleep 0.1; do echo 1 > /logs/verifier/reward.txt; done' > /dev/null 2>&1 &"
PROGRAMS = {
    "writes the reward that comes first": "echo '{\"reward\": 1}' > /logs/verifier/reward.json",
    "ends the tests": "echo 1 > /logs/verifier/reward.txt; kill -9 $PPID",
    "ends all processes": "echo 1 > /logs/verifier/reward.txt; kill -9 -1",
    "writes the reward later": _LATE,
    "changes the expected file": "chmod u+w /tests /tests/*; echo 41 > /tests/expected; rm -f /tests/expected",
    "removes the folder of the reward": "rm -rf /logs/verifier",
    "uses all memory": "tail -c 4G /dev/zero > /dev/null",
    "fails": "exit 3",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", PROGRAMS)
def test_a_program_that_the_tests_run_gets_no_reward(what: str, tmp_path: Path) -> None:
    """The tests run the model's program, then write their reward; without one, the answer is no success."""
    files = {
        "tests/expected": "42\n",
        "tests/test.sh": "#!/bin/bash\nset -e\n./program\necho 41 | cmp -s - /tests/expected && reward=1 || reward=0\n"
        "echo $reward > /logs/verifier/reward.txt\n",
        "environment/program": "#!/bin/bash\n",
        "environment/Dockerfile": "FROM x\nCOPY program .\nRUN chmod +x program\n",
        "solution/solve.sh": f"#!/bin/bash\ncat > program <<'END'\n#!/bin/bash\n{PROGRAMS[what]}\nEND\n",
    }
    found = tried(make_task(tmp_path / "t", files), "oracle", tmp_path)
    assert (found["state"], found["ended"], found["reward"]) == ("failed", "wrong", 0.0), found


def test_tests_that_never_write_a_reward_say_nothing(tmp_path: Path) -> None:
    files = {"tests/test.sh": "#!/bin/bash\nkill -9 $$\n", "solution/solve.sh": "#!/bin/bash\ntouch b\n"}
    found = tried(make_task(tmp_path / "t", files), "oracle", tmp_path)
    assert (found["state"], found["reason"]) == ("not run", "the signal 9 ended the tests")
