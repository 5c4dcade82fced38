"""The sandbox itself: it starts, edge checks it, it fails closed, and it sends the work folder.

.venv/bin/pytest tests/terminal/test_sandbox.py

tests/terminal/test_escapes.py and tests/terminal/test_escapes_kernel.py contain the attempts to escape from it.
"""

import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from escapes import POSSIBLE, SMALL, UNPRIVILEGED, Shell, World, as_ordinary_user, has, sandboxed, until

from edge.agent.workplace import Workplace
from edge.errors import SandboxError
from edge.system.seccomp import seccomp_filter
from edge.terminal.check import WORK
from edge.terminal.packed import restore
from edge.terminal.sandbox import Sandbox, Saved
from edge.terminal.tmux import Terminal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="bubblewrap, tmux, bash, tar or awk is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.made() as world:
        yield world


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    place = tmp_path / "work folder"
    (place / "sub").mkdir(parents=True)
    (place / "a").write_text("a\n")
    (place / "sub" / "b").write_text("b\n")
    return place


def test_a_session_goes_on_from_what_was_saved(world: World, workdir: Path, tmp_path: Path) -> None:
    kept = Saved(tmp_path / "kept.tar", tmp_path / "first.tar", b"key")
    with sandboxed(world, workdir=workdir, saved=kept) as shell:
        assert shell.sandbox is not None
        shell.run("echo new > new; rm a; chmod 000 sub/b sub\n")  # unreadable is not deleted
        shell.sandbox.save(kept.work)
    assert sorted(os.listdir(workdir)) == ["a", "sub"]  # edge has brought back nothing yet
    with sandboxed(world, workdir=workdir, saved=kept) as shell:
        assert shell.sandbox is not None
        assert "new" in shell.run("cat new; echo more >> new; cat sub/b\n")
        shell.sandbox.save(kept.work)
        comparison = shell.sandbox.compare(kept.work)
        assert comparison.changes.new == ["new"] and comparison.changes.deleted == ["a"]
        comparison.apply()
    assert (workdir / "new").read_text() == "new\nmore\n"
    assert not (workdir / "a").exists() and (workdir / "sub" / "b").read_text() == "b\n"


def inside_and_saved(shell: Shell, saved: Saved) -> dict[str, str]:
    """The files of the sandbox, checked against what its archives say."""
    assert shell.sandbox is not None
    shell.sandbox.save(saved.work)
    place = saved.work.with_name("unpacked")
    (place / "app").mkdir(parents=True)
    restore(saved.first, saved.work, saved.key, place / "all.tar", place / "again.tar")
    subprocess.run(["tar", "-xf", place / "all.tar", "-C", place / "app", "./"], check=True)
    found = {}
    for path in sorted((place / "app").rglob("*")):
        text = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else "folder"
        found[str(path.relative_to(place / "app"))] = (
            f"{text} {path.is_file() and path.stat().st_mode & 0o100}"
        )
    shutil.rmtree(place)
    return found


def test_only_what_changed_is_saved(world: World, workdir: Path, tmp_path: Path) -> None:
    """Over several saves and several sandboxes of one session, the archives always say what is there."""
    (workdir / "large").write_bytes(b"x" * (4 << 20))
    (workdir / "swap").mkdir()
    (workdir / "swap" / "x").write_text("x\n")
    (workdir / "odd \n\x01 -name").write_text("odd\n")
    saved = Saved(tmp_path / "work.tar", tmp_path / "first.tar", b"key")
    with sandboxed(world, workdir=workdir, saved=saved) as shell:
        before = inside_and_saved(shell, saved)
        assert set(before) == {"a", "sub", "sub/b", "large", "swap", "swap/x", "odd \n\x01 -name"}
        assert saved.work.stat().st_size < 10_000
        shell.run(
            "rm -r swap; echo file > swap; mkdir n; echo 1 > n/1; chmod +x a; mv sub/b sub/c; ln -s a l\n"
        )
        now = inside_and_saved(shell, saved)
        assert now["swap"] == "file\n 0" and now["a"] == "a\n 64" and now["l"].startswith("a ")
        assert set(now) == {"a", "sub", "sub/c", "large", "swap", "n", "n/1", "l", "odd \n\x01 -name"}
        assert saved.work.stat().st_size < 20_000
    with sandboxed(world, workdir=workdir, saved=saved) as shell:  # the session goes on
        assert inside_and_saved(shell, saved) == now
        shell.run(
            "rm swap; mkdir swap; echo y > swap/y; touch -d 2001-01-01 a; rm 'large' n/1; echo B > sub/b\n"
        )
        third = inside_and_saved(shell, saved)
        assert third["swap/y"] == "y\n 0" and third["sub/b"] == "B\n 0"
        assert set(third) == {"a", "sub", "sub/b", "sub/c", "swap", "swap/y", "n", "l", "odd \n\x01 -name"}
    with sandboxed(world, workdir=workdir, saved=saved) as shell:
        shell.run("rm -rf ~/.e*\n")  # without the list of the first files, all of them are saved
        assert inside_and_saved(shell, saved) == third
        assert shell.sandbox is not None
        changes = shell.sandbox.compare(saved.work).apply()
    assert {"large", "swap/x"} <= set(changes.deleted) and changes.withheld == []
    assert (workdir / "swap" / "y").read_text() == "y\n" and not (workdir / "large").exists()


@pytest.mark.skipif(shutil.which("python3", path="/usr/bin") is None, reason="no Python in /usr/bin")
def test_what_is_written_through_a_map_of_a_file_is_saved(
    world: World, workdir: Path, tmp_path: Path
) -> None:
    """As numpy.memmap and databases do; such a write changes no time of a file in memory."""
    names = ["large", "odd \n\x01\\ -name", "sub/b"]
    for name in names:
        (workdir / name).write_text(f"old {name}")
    (workdir / "seen").write_text("seen")
    program = (
        "import mmap,sys\\nfor name in sys.argv[1:]:\\n with open(name, 'r+b') as f:\\n"
        "  m = mmap.mmap(f.fileno(), 0); m[:1]; m[:3] = b'NEW'\\n"
    )
    saved = Saved(tmp_path / "work.tar", tmp_path / "first.tar", b"key")
    for start in ("old", "NEW"):  # the second session goes on
        with sandboxed(world, workdir=workdir, saved=saved) as shell:
            assert shell.sandbox is not None
            if start == "NEW":
                assert inside_and_saved(shell, saved)["sub/b"] == "NEW sub/b 0"
            shell.run(
                f'printf "{program}" > ~/p.py; cat seen; '
                "/usr/bin/python3 ~/p.py sub/b large $'odd \\n\\001\\\\ -name'\n"
            )
            inside_and_saved(shell, saved)
            now = inside_and_saved(shell, saved)
            assert [now[name] for name in names] == [f"NEW {name} 0" for name in names]
            changes = shell.sandbox.compare(saved.work).changes
            assert (changes.new, changes.changed, changes.deleted) == ([], ["large", "sub/b"], [])
    assert b"seen" not in saved.work.read_bytes().partition(b"./sub/b")[2]


def test_a_save_that_fails_is_told_to_the_model(world: World, workdir: Path, tmp_path: Path) -> None:
    """Links that count once each, sparse files, and names without end: the last saved state stays."""
    saved = Saved(tmp_path / "work.tar", tmp_path / "first.tar", b"key")
    with sandboxed(world, workdir=workdir, saved=saved) as shell:
        said: list[str] = []
        place = Workplace(shell.terminal, workdir, said.append, shell.sandbox)
        shell.run("echo one > one\n")
        place.save(saved.work)
        good = saved.work.read_bytes()
        for keys in (
            "head -c 2000000 /dev/zero > x; for i in $(seq 30); do ln x x$i; done\n",
            "rm x*; for i in $(seq 10); do truncate -s 20M s$i; done\n",
        ):
            shell.run(keys)
            place.notes = []
            place.save(saved.work)
            (note,) = place.notes
            assert (
                note.startswith("Note: the work folder could not be saved: ")
                and "larger than its limit" in note
            )
            assert place.unsaved is not None and said[-1] == note
            assert saved.work.read_bytes() == good
        shell.run("rm s*; echo two > two\n")
        place.notes = []
        place.save(saved.work)
        assert place.notes == [] and place.unsaved is None and shell.sandbox is not None
        assert shell.sandbox.compare(saved.work).changes.new == ["one", "two"]


def test_a_work_folder_that_nobody_may_enter_is_saved(world: World, workdir: Path, tmp_path: Path) -> None:
    saved = Saved(tmp_path / "work.tar", tmp_path / "first.tar", b"key")
    with sandboxed(world, workdir=workdir, saved=saved) as shell:
        place = Workplace(shell.terminal, workdir, print, shell.sandbox)
        shell.run("echo one > one; chmod -R 644 .\n")
        place.save(saved.work)
        assert place.notes == [] and shell.sandbox is not None
        shell.run("echo two > two; chmod 000 .\n")
        place.save(saved.work)
        assert place.notes == []
        assert shell.sandbox.compare(saved.work).changes.new == ["one", "two"]


def test_nothing_of_the_persons_environment_is_left(world: World, workdir: Path) -> None:
    with (
        Sandbox.prepare(workdir) as sandbox,
        Terminal.start(
            sandbox.argv, cwd=workdir, env=world.environment(), ready=sandbox.wait_ready
        ) as terminal,
    ):
        found = Shell(terminal, sandbox).run("cat /proc/*/environ | tr '\\0' '\\n'; env\n")
    assert "PATH=/" in found
    assert "work folder" not in found


def test_a_shell_that_ends_is_followed_by_another(world: World, workdir: Path) -> None:
    with sandboxed(world, workdir=workdir) as shell:
        shell.terminal.send("cd /; stty -echo; exit\n", 0.5)
        assert f"{WORK}\n" in shell.run("pwd\n") and shell.sandbox is not None
        assert shell.sandbox.trouble() is None


def test_a_line_keeps_its_letters(world: World, workdir: Path) -> None:
    """stty makes z a key that clears the line, and e one that ends the shell: the next one would read the rest."""
    with sandboxed(world, workdir=workdir) as shell:
        assert shell.sandbox is not None
        shell.terminal.send("unset PROMPT_COMMAND; stty kill z eof e; sleep 0.2\n", 0.5)
        until(shell.terminal.prompt, 20)
        shell.terminal.send("echo xyz > out\n", 0.5)
        until(shell.terminal.prompt, 20)
        assert shell.sandbox.show(f"{WORK}/out") == b"xyz\n"


def test_it_ends_when_the_terminal_does(world: World, workdir: Path) -> None:
    with sandboxed(world, workdir=workdir) as shell:
        assert shell.sandbox is not None
        inside = shell.inside()
        shell.terminal.close()
        until(lambda: shell.sandbox is not None and shell.sandbox.trouble())
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in inside))
        with pytest.raises(SandboxError, match="has ended"):
            shell.sandbox.save(workdir / "never.tar")
        folder = shell.sandbox._folder
    assert not folder.exists()


# --- it fails closed ---


def without(*words: str) -> Callable[[list[str]], list[str]]:
    def edited(arguments: list[str]) -> list[str]:
        text = "\0".join(arguments)
        assert "\0".join(words) in text
        return text.replace("\0".join(words) + "\0", "").split("\0")

    return edited


def adding(*words: str) -> Callable[[list[str]], list[str]]:
    return lambda arguments: [*arguments, *words]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (adding("--share-net"), "it shares the net namespace|there is a network"),
        (without("--seccomp", "9"), "filter of system calls|has a file of this system open"),
        (without("--remount-ro", "/"), "/ can be written"),
        (without("--remount-ro", "/dev"), "/dev can be written"),
        (without("--remount-ro", "/proc"), "/proc can be written"),
        (adding("--bind", "/tmp", "/tmp/more"), "/tmp/more can be written"),
        (adding("--size", "1048576000", "--tmpfs", WORK), "another size|can be written|cannot be unpacked"),
        (adding("--file", "5", "/tmp/in.tar"), "cannot be unpacked|does not start"),
        (without("--info-fd", "10"), "bubblewrap has ended"),
        (adding("--no-such-option"), "no-such-option"),
        (adding("--ro-bind", "/no/such/place", "/x"), "no/such/place"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_hold_is_found(
    edit: Callable[[list[str]], list[str]], complaint: str, world: World, workdir: Path
) -> None:
    """bubblewrap gets other arguments than edge's: that is an error before edge types anything."""
    with Sandbox.prepare(workdir, SMALL) as sandbox:
        place = sandbox._folder / "arguments"
        arguments = place.read_text().rstrip("\0").split("\0")
        place.write_text("".join(f"{word}\0" for word in edit(arguments)))
        with pytest.raises(SandboxError, match=complaint):
            Terminal.start(
                sandbox.argv, cwd="/", env=world.environment(), ready=lambda: sandbox.wait_ready(20)
            )


def test_limits_that_were_not_set_are_found(world: World, workdir: Path) -> None:
    with Sandbox.prepare(workdir, SMALL) as sandbox:
        argv = [*sandbox.argv[:-5], "200", *sandbox.argv[-4:]]
        with pytest.raises(SandboxError, match="'Max processes' is not in force"):
            Terminal.start(argv, cwd="/", env=world.environment(), ready=sandbox.wait_ready)


# --- as other users, on other systems ---

SCRIPT = """
import os, sys, tempfile
from pathlib import Path
from edge.errors import EdgeError
from edge.terminal.sandbox import Limits, Sandbox
from edge.terminal.tmux import Terminal
with tempfile.TemporaryDirectory() as place:
    work = Path(place) / "work"
    work.mkdir()
    (work / "a").write_text("a\\n")
    try:
        with Sandbox.prepare(work, Limits(disk=4 << 20, temporary=1 << 20, reserve=1)) as sandbox:
            with Terminal.start(sandbox.argv, cwd="/", ready=sandbox.wait_ready, full_waits=False) as terminal:
                terminal.send("echo b > b; cat /proc/*/environ > seen; touch %s/x; echo x > /proc/1/fd/2; sync\\n", 60)
                sandbox.save(Path(place) / "kept.tar")
                print(sandbox.compare(Path(place) / "kept.tar").apply().new, os.geteuid())
                print(b"TOKEN" in (work / "seen").read_bytes())
    except EdgeError as error:
        print("error:", error)
"""


def ordinary(*before: str) -> str:
    """The output of the script as an ordinary user; `before`: words before its command."""
    with as_ordinary_user() as (python, place):
        run = subprocess.run(
            [*UNPRIVILEGED, "env", *before, *python, SCRIPT % place],
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "HOME": place,
                "PYTHONPATH": place,
                "PYTHONDONTWRITEBYTECODE": "1",
                "MY_TOKEN": "TOKEN",
            },
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not run.stderr, run.stderr
        assert not (Path(place) / "x").exists()
        return run.stdout


def test_an_ordinary_user(world: World) -> None:
    user = UNPRIVILEGED[2] if UNPRIVILEGED else str(os.geteuid())
    assert ordinary() == f"['b', 'seen'] {user}\nFalse\n"


def test_without_bubblewrap() -> None:
    bwrap = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    assert bwrap is not None
    said = ordinary("bwrap", "--dev-bind", "/", "/", "--ro-bind", "/dev/null", bwrap, "--")
    assert said.startswith("error: the sandbox needs bwrap") and "apt-get install bubblewrap" in said


def test_where_user_namespaces_are_not_allowed() -> None:
    said = ordinary("bwrap", "--dev-bind", "/", "/", "--unshare-user", "--disable-userns", "--")
    assert said.startswith("error: the sandbox does not start: bwrap: ")
    assert (
        "no unprivileged user namespaces: allow them with sysctl (kernel.unprivileged_userns_clone=1" in said
    )


@pytest.mark.skipif(not has("unshare"), reason="there is no unshare")
def test_where_proc_cannot_be_mounted() -> None:
    """As in many containers, which cover parts of /proc."""
    said = ordinary(
        "bwrap", "--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--tmpfs", "/proc/fs", "--"
    )
    assert said.startswith("error: the sandbox does not start: bwrap: ") and "proc" in said


# --- the filter of system calls ---


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="not for this processor")
def test_the_filter_on_each_call() -> None:
    """Runs the filter as the kernel would, and checks its answers."""
    column, architecture = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}[platform.machine()]
    program = list(struct.iter_unpack("=HBBI", seccomp_filter()))

    def answer(number: int, *arguments: int, arch: int = architecture) -> int:
        data = struct.pack("<iIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
        at = value = 0
        while True:
            code, yes, no, k = program[at]
            at += 1
            if code == 0x20:
                value = struct.unpack_from("<I", data, k)[0]
            elif code == 0x54:
                value &= k
            elif code == 0x06:
                return k & 0xFFFF if k >> 16 == 5 else -1 if k == 0x7FFF0000 else 999
            else:
                true = {0x15: value == k, 0x35: value >= k, 0x45: bool(value & k)}[code]
                at += yes if true else no

    def calls(x86: int, arm: int) -> int:
        return (x86, arm)[column]

    allowed, refused, missing = -1, 1, 38
    clone, socket, pair, ioctl = calls(56, 220), calls(41, 198), calls(53, 199), calls(16, 29)
    assert [answer(calls(*pair)) for pair in ((0, 63), (1, 64), (59, 221), (39, 172))] == [allowed] * 4
    assert [answer(calls(*pair)) for pair in ((250, 219), (101, 117), (272, 97), (165, 40))] == [refused] * 4
    assert [answer(calls(*pair)) for pair in ((319, 279), (435, 435), (29, 194))] == [missing] * 3
    assert answer(clone, 17) == allowed  # SIGCHLD: a plain fork
    assert all(answer(clone, 17 | flag) == refused for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000))
    assert [answer(socket, family, 1) for family in (1, 2, 10)] == [allowed] * 3
    assert [answer(socket, family, 1) for family in (0, 17, 38, 40, 31)] == [refused] * 5
    assert [answer(socket, 2, 1 | 0o2000000, protocol) for protocol in (0, 6)] == [allowed] * 2
    assert [answer(socket, 10, 2 | 0o4000, protocol) for protocol in (0, 17)] == [allowed] * 2
    strange = [(2, 1, 132), (10, 1, 262), (2, 5, 0), (2, 6, 33), (2, 3, 0), (10, 2, 58), (2, 1, 1 << 16 | 6)]
    assert [answer(socket, *one) for one in strange] == [
        93
    ] * 7  # SCTP, MPTCP, DCCP, raw, ping: no such protocol
    assert (answer(calls(54, 208), 3, 6, 31), answer(calls(54, 208), 3, 6, 1)) == (refused, allowed)
    persons = [0, 0xFFFFFFFF, 8, 0x40000, 0x400000]
    assert [answer(calls(135, 92), one) for one in persons] == [allowed] * 2 + [refused] * 3
    assert (answer(socket, 16, 3, 0), answer(socket, 16, 3, 9)) == (allowed, refused)
    assert (answer(pair, 1, 1), answer(pair, 40, 1)) == (allowed, refused)
    assert (answer(ioctl, 0, 0x5412), answer(ioctl, 0, 0x1_0000_5412), answer(ioctl, 0, 0x541C)) == (
        refused,
    ) * 3
    assert [answer(ioctl, 0, one) for one in (0x5423, 0x540C, 0x541D)] == [refused] * 3
    assert [answer(ioctl, 0, one) for one in (0x5401, 0x5413, 0x541B)] == [allowed] * 3
    known = [
        *((68, 186), (64, 190), (240, 180), (253, 26), (294, 26), (237, 235), (206, 0), (162, 81), (306, 267))
    ]
    assert [answer(calls(*pair)) for pair in known] == [missing] * len(known)
    assert [answer(number) for number in (470, 500, 1000, 0x3FFFFFFF)] == [missing] * 4  # of later kernels
    assert answer(1, arch=0x40000003) == missing  # a 32-bit program
    if column == 0:
        assert answer(0x40000000 | 1) == missing  # x32
