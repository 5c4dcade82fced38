# ruff: noqa: E501
"""Programs that people and models use work under the sandbox's list of allowed system calls.

.venv/bin/pytest tests/terminal/test_programs.py

Each row ran with a real program in the real sandbox; a row whose programs are not installed is skipped. The last line
that a row prints is the check. A call that the list forgets makes a row fail, or a program slower than its time.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from escapes import POSSIBLE, Shell, World, has, sandboxed, until

from edge.terminal.sandbox import Limits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not POSSIBLE, reason="bubblewrap, tmux, bash, tar or awk is not installed"),
]
LIMITS = Limits(disk=128 << 20, temporary=64 << 20, reserve=64 << 20)

C = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void *work(void *x) { *(int *)x += 1; return NULL; }
int main(void) {
    pthread_t thread; int n = 41, status;
    if (pthread_create(&thread, NULL, work, &n) || pthread_join(thread, NULL)) return 1;
    if (!fork()) _exit(0);
    wait(&status);
    if (system("exit 3") == -1) return 2;
    void *p = malloc(1 << 24); p = realloc(p, 1 << 25); free(p);
    printf("%d\n", n);
    return 0;
}
"""
CXX = r"""
#include <future>
#include <filesystem>
#include <iostream>
#include <random>
int main() {
    std::random_device random; (void)random();
    std::filesystem::create_directories("tree/a/b");
    std::cout << std::async(std::launch::async, [] { return 42; }).get() << std::filesystem::exists("tree/a/b") << "\n";
}
"""
PYTHON = r"""
import asyncio, concurrent.futures, ctypes, hashlib, json, lzma, mmap, multiprocessing, os, random, re, select, shutil
import signal, socket, sqlite3, ssl, subprocess, sys, tempfile, threading, time
def double(x): return 2 * x
async def talk():
    async def answer(reader, writer):
        writer.write((await reader.readline()).upper()); await writer.drain(); writer.close()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\n"); await writer.drain()
    assert await reader.read() == b"HELLO\n"
    child = await asyncio.create_subprocess_exec("echo", "x", stdout=subprocess.PIPE)
    assert (await child.communicate())[0] == b"x\n"
    server.close()
if __name__ == "__main__":
    asyncio.run(talk())
    with multiprocessing.Pool(2) as pool: assert pool.map(double, [1, 2]) == [2, 4]
    with concurrent.futures.ThreadPoolExecutor(2) as pool: assert list(pool.map(double, [1])) == [2]
    with sqlite3.connect("x.db") as data: data.execute("create table t (a)"); data.execute("insert into t values (1)")
    with tempfile.TemporaryFile() as file:
        file.truncate(4096)
        with mmap.mmap(file.fileno(), 4096) as view: view[:1] = b"x"
    shared = mmap.mmap(-1, 4096); shared.close()
    signal.setitimer(signal.ITIMER_REAL, 0.01); signal.signal(signal.SIGALRM, lambda *_: None); time.sleep(0.05)
    shutil.copyfile(sys.executable, "copy"); os.replace("copy", "copy2"); os.sched_getaffinity(0); os.urandom(8)
    left, right = socket.socketpair(); left.send(b"x"); assert right.recv(1) == b"x"
    with select.epoll() as poll: poll.register(left, select.EPOLLIN)
    socket.getaddrinfo("localhost", 80); socket.socket(socket.AF_INET6).close(); socket.if_nameindex()
    print("fine-42")
"""
NODE = r"""
const {execFileSync} = require("child_process"), fs = require("fs"), http = require("http");
const {Worker} = require("worker_threads");
fs.mkdirSync("n", {recursive: true}); fs.writeFileSync("n/a", "x"); fs.cpSync("n", "m", {recursive: true});
if (execFileSync("echo", ["x"]).toString() !== "x\n") process.exit(1);
require("crypto").randomBytes(8);
const server = http.createServer((_, answer) => answer.end("42")).listen(0, "127.0.0.1", () => {
  http.get({port: server.address().port, host: "127.0.0.1"}, (reply) => reply.on("data", (data) => {
    new Worker("require('worker_threads').parentPort.postMessage(1)", {eval: true}).on("message", () => {
      console.log("fine-" + data); server.close(); });
  }));
});
"""
JAVA = 'class A { public static void main(String[] x) throws Exception { var t = new Thread(() -> {}); t.start(); t.join(); System.out.println("fine-" + 42); } }'

# Name, the programs it needs, files that it reads, commands. The commands print fine-42 if all is well.
ROWS: list[tuple[str, str, dict[str, str], str]] = [
    (
        "bash",
        "bash",
        {},
        "diff <(echo a) <(echo a) && coproc cat; echo b >&${COPROC[1]}; read -u ${COPROC[0]} x; kill %1;"
        " (trap 'echo t' USR1; kill -USR1 $BASHPID; sleep 0.1); sleep 5 & kill %%; wait; mkfifo p; echo f > p & cat p;"
        ' [ $x = b ] && [[ $(printf %s "$(< /proc/self/comm)") ]] && echo fine-$((40+2))',
    ),
    (
        "coreutils",
        "sort",
        {"a": "b\na\n"},
        "set -e; cp -a a c; mv c d; ln -s d e; ln d f; install -m 700 d g; sort -u a > s; shuf a > t; split -l 1 a x;"
        " seq 200000 | sort -R --parallel=2 | sort -n | tail -n 1; dd if=/dev/zero of=z bs=1M count=4 status=none;"
        " truncate -s 2M z; sha256sum z; stat z; touch -d yesterday z; chmod 600 z; chown $(id -u) z; df . ; du -s;"
        " nproc; date; nice -n 5 true; timeout 5 true; stdbuf -oL true; mktemp; tee y < a; od -c a; env -i true;"
        " cp --sparse=always z w; cp --reflink=auto z v; cat z | wc -c; ls -la --color; sync z; rm -rf x* z w v;"
        " realpath e; setsid true; find . -newer a -exec true {} +; xargs -P 2 -n 1 true < a; diff a a;"
        " grep -r b a; sed -i s/b/c/ a; awk '{print}' a; echo fine-$((40+2))",
    ),
    (
        "tail -f without inotify",
        "tail",
        {"a": "1\n"},
        "timeout 4 tail -f a > out 2> err & sleep 1; echo 42 >> a; wait; grep -q 42 out && echo fine-$((40+2))",
    ),
    ("archives", "tar gzip", {"a": "x\n"}, "tar -czf a.tgz a && tar -xzf a.tgz -O && gzip -k a && zcat a.gz && echo fine-$((40+2))"),
    ("xz", "xz", {"a": "x\n"}, "xz -T2 -k a && xzcat a.xz && echo fine-$((40+2))"),
    ("zstd", "zstd", {"a": "x\n"}, "zstd -q -T2 a && zstdcat a.zst && echo fine-$((40+2))"),
    ("zip", "zip unzip", {"a": "x\n"}, "zip -q a.zip a && unzip -o a.zip && echo fine-$((40+2))"),
    ("rsync", "rsync", {"a": "x\n"}, "mkdir d; rsync -a a d/ && cat d/a && echo fine-$((40+2))"),
    ("gcc", "gcc", {"a.c": C}, "gcc -O2 -Wall -pthread -o a a.c && ./a && echo fine-$((40+2))"),
    ("g++", "g++", {"a.cc": CXX}, "g++ -std=c++17 -pthread -o a a.cc && ./a && echo fine-$((40+2))"),
    ("gcc -flto and ar", "gcc ar", {"a.c": C}, "gcc -c -flto=2 a.c && ar rcs a.a a.o && gcc -flto=2 -o b a.a && ./b && echo fine-$((40+2))"),
    ("clang", "clang", {"a.c": C}, "clang -O2 -o a a.c -lpthread && ./a && echo fine-$((40+2))"),
    ("make", "make gcc", {"Makefile": "all: a b c\na b c:\n\techo x > $@; sleep 0.1\n"}, "make -j3 && make -j2 && cat c && echo fine-$((40+2))"),
    ("cmake", "cmake gcc make", {"a.c": C, "CMakeLists.txt": "cmake_minimum_required(VERSION 3.5)\nproject(a C)\nadd_executable(a a.c)\n"}, "cmake -B b . && cmake --build b -j2 && b/a && echo fine-$((40+2))"),
    (
        "git",
        "git",
        {"a": "x\n"},
        "export GIT_PAGER=cat; git config --global user.email a@b.c; git config --global user.name n; git init -q r && cd r"
        " && cp ../a . && git add -A && git commit -qm one && git branch b && git worktree add ../w b && echo y >> a"
        " && git stash && git stash pop && git commit -qam two && git log --stat && git gc -q && git fsck && git grep x"
        " && cd .. && git clone -q r c && cd c && git bundle create ../x.bundle --all && git blame a && git archive HEAD"
        " | tar -t && echo fine-$((40+2))",
    ),
    ("python", "python3", {"a.py": PYTHON}, "python3 a.py"),
    ("python -m venv", "python3", {}, "python3 -m venv --without-pip v && v/bin/python -c 'print(\"fine-\" + str(42))'"),
    ("python -m unittest", "python3", {"test_a.py": "import unittest\nclass A(unittest.TestCase):\n    def test(self): pass\n"}, "python3 -m unittest && echo fine-$((40+2))"),
    (
        "pip",
        "pip3",
        {"pkg/setup.py": "from setuptools import setup\nsetup(name='a', version='1', py_modules=['a'])\n", "pkg/a.py": "x = 42\n"},
        "python3 -c 'import setuptools, wheel' || exec echo fine-42; pip3 install --no-index --no-build-isolation"
        " --target t ./pkg && PYTHONPATH=t python3 -c 'import a; print(\"fine-\" + str(a.x))'",
    ),
    ("node", "node", {"a.js": NODE}, "node a.js"),
    (
        "npm",
        "npm node",
        {"p/package.json": '{"name": "p", "version": "1.0.0", "scripts": {"go": "echo fine-4\\"2\\""}}'},
        "cd p && npm pack --offline && cd .. && mkdir q && cd q && npm init -y && npm i --offline ../p/p-1.0.0.tgz && cd"
        " node_modules/p && npm run go",
    ),
    ("perl", "perl", {}, "perl -MSocket -MIO::Select -e 'pipe(R, W); if (!fork) { print W 42; exit } close W; wait; print \"fine-\" . <R> . \"\\n\"'"),
    ("java", "java javac", {"A.java": JAVA}, "javac A.java && java -Xmx256m A"),
    ("ruby", "ruby", {}, "ruby -e 'Thread.new { puts \"fine-#{`echo 42`}\" }.join'"),
    ("php", "php", {}, "php -r 'echo \"fine-\", 40+2, \"\\n\";'"),
    ("go", "go", {"a.go": 'package main\nimport ("fmt"; "net")\nfunc main() { l, _ := net.Listen("tcp", "127.0.0.1:0"); l.Close(); fmt.Printf("fine-%d\\n", 42) }\n'}, "GOFLAGS=-mod=mod go run a.go"),
    ("rust", "rustc", {"a.rs": 'fn main() { std::thread::spawn(|| println!("fine-{}", 42)).join().unwrap(); }'}, "rustc a.rs && ./a"),
    ("openssl and ssh-keygen", "openssl ssh-keygen", {}, "openssl genrsa -out k 2048 && ssh-keygen -q -t ed25519 -N '' -f s && echo fine-$((40+2))"),
    ("curl", "curl python3", {"a": "x\n"}, "python3 -m http.server 8123 > /dev/null 2>&1 & sleep 2; curl -s 127.0.0.1:8123/a && kill %1; wait; echo fine-$((40+2))"),
    ("sqlite3", "sqlite3", {}, "sqlite3 x.db 'create table t (a); insert into t values (42); select \"fine-\" || a from t'"),
    ("vim", "vim", {"a": "b\n"}, "vim -es -c '%s/b/42/' -c wq a; echo fine-$(cat a)"),
    ("file", "file", {"a": "#!/bin/sh\n"}, "file a | grep -q script && echo fine-$((40+2))"),
    ("less", "less", {"a": "x\n"}, "less -FX a && echo fine-$((40+2))"),
    ("ps and top", "ps top", {}, "ps aux && top -bn1 | head -3 && echo fine-$((40+2))"),
    ("jq", "jq", {}, "echo '{\"a\": 42}' | jq -r '\"fine-\" + (.a|tostring)'"),
    ("tmux in the sandbox", "tmux", {}, "tmux -L x new -d 'sleep 9' && tmux -L x ls && tmux -L x kill-server && echo fine-$((40+2))"),
    ("screen size and job control", "stty", {}, "stty size; sleep 9 & bg; fg %1 & jobs; kill %1; wait; echo fine-$((40+2))"),
]  # fmt: skip


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.made() as world:
        yield world


@pytest.fixture(scope="module")
def box(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    workdir = tmp_path_factory.mktemp("work")
    for index, (_, _, files, commands) in enumerate(ROWS):
        for path, text in {**files, "go.sh": commands + "\n"}.items():
            place = workdir / str(index) / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    with sandboxed(world, LIMITS, workdir) as shell:
        yield shell


@pytest.mark.parametrize("index", range(len(ROWS)), ids=[row[0] for row in ROWS])
def test_a_program_works(index: int, box: Shell) -> None:
    name, programs, _, _ = ROWS[index]
    if not has(*programs.split()):
        pytest.skip(f"needs {programs} in /usr/bin")
    box.terminal.send(
        f"cd /app/{index}; clear; bash go.sh > out 2>&1; echo ended-{name[0]}{index}-$((1+1))\n"
    )
    until(lambda: f"ended-{name[0]}{index}-2" in box.terminal.screen(), 120, f"{name} has not ended")
    said = Path(f"/proc/{box.pid}/root/app/{index}/out").read_text(errors="replace")
    assert said.rstrip().endswith("fine-42"), said
