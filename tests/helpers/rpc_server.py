"""llama.cpp's RPC backend: an offload device that needs no GPU, and its server in a child process.

    python tests/helpers/rpc_server.py LIBRARY PORT [MEMORY [ADDRESS_SPACE]]    serve the CPU on 127.0.0.1

The backend is compiled from the sources of the installed llama-cpp-python against its libggml-base, as a library that
llama.cpp loads while it runs. A command of edge gets it with GGML_BACKEND_PATH, and connects with --rpc. MEMORY: the
bytes that the device reports; ADDRESS_SPACE: the bytes that the server's process
can really get.
"""

import contextlib
import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import command_line
from llama_cpp_sources import MISSING, SDIST, write_sources

DEVICE = Path(__file__).with_name("rpc_device.cpp")
# As llama.cpp's CMake compiles a backend that is a library of its own (GGML_BACKEND_DL).
FLAGS = (
    *(
        "-O2",
        "-std=c++17",
        "-fPIC",
        "-shared",
        "-pthread",
        "-DNDEBUG",
        "-DGGML_BACKEND_DL",
        "-DGGML_BACKEND_BUILD",
    ),
    *("-DGGML_BACKEND_SHARED", "-DGGML_SHARED"),
)


def installed_libraries() -> Path:
    """The folder of the libraries that llama-cpp-python installed."""
    spec = find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "lib"


def missing() -> str | None:
    """Why the backend cannot be compiled here; None if it can."""
    if sys.platform != "linux":
        return "the RPC device is built on Linux only"
    if not SDIST.is_file():
        return MISSING
    if not (installed_libraries() / "libggml-base.so").exists():
        return "the installed llama-cpp-python has no libggml-base.so"
    return None if shutil.which("g++") else "there is no g++"


def compile_backend(library: Path) -> None:
    """Compile ggml-rpc, and the device with little memory, to `library`."""
    place = library.parent / "ggml"
    wanted = re.compile(r"ggml/(include|src|src/ggml-rpc)/[^/]+\.(h|cpp)")
    write_sources(library.parent, lambda path: wanted.fullmatch(path) is not None)
    rpc, lib = place / "src" / "ggml-rpc", installed_libraries()
    subprocess.run(
        [
            *("g++", *FLAGS, f"-I{place}/include", f"-I{place}/src"),
            *(str(rpc / "ggml-rpc.cpp"), str(rpc / "transport.cpp"), str(DEVICE), "-o", str(library)),
            *(f"-L{lib}", "-lggml-base", f"-Wl,-rpath,{lib}"),
        ],
        check=True,
    )
    shutil.rmtree(place)


@dataclass(frozen=True)
class RpcServer:
    """A running server: its address, its process, and the environment in which edge has the RPC backend."""

    endpoint: str
    process: "subprocess.Popen[str]"
    environment: dict[str, str]

    def edge(self, *words: object, **options: object) -> "subprocess.CompletedProcess[str]":
        """What a command of edge wrote that computes on the server's device."""
        return command_line.run(*words, "--rpc", self.endpoint, env=self.environment, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def serving_device(library: Path, *limits: int) -> Iterator[RpcServer]:
    """A server for as long as a test needs it. `limits`: MEMORY and ADDRESS_SPACE."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, __file__, str(library), str(port), *map(str, limits)]
    environment = {**os.environ, "GGML_BACKEND_PATH": str(library)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if "transport" in line:  # the last line before it listens
                    break
            _wait_until_listens(port, process)
            yield RpcServer(f"127.0.0.1:{port}", process, environment)
        finally:
            process.kill()


def _wait_until_listens(port: int, process: "subprocess.Popen[str]") -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
    raise AssertionError("the RPC server ended")


def serve(library: str, port: str, memory: str = "0", address_space: str = "0") -> None:
    """Serve the CPU of this machine, with one thread, until the process is killed."""
    import resource

    from edge.llama.devices import ggml_library, load_backends

    load_backends()
    ggml, rpc = ggml_library(), ctypes.CDLL(library)
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    device = ctypes.c_void_p(ggml.ggml_backend_dev_by_type(0))  # GGML_BACKEND_DEVICE_TYPE_CPU
    if int(memory):
        rpc.limit_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        rpc.limit_memory(device, int(memory))
    if int(address_space):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(address_space)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    start = rpc.ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    libc = ctypes.CDLL(None)
    libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
    libc.setvbuf(
        ctypes.c_void_p.in_dll(libc, "stdout"), None, 1, 4096
    )  # _IOLBF: whoever waits reads its lines
    start(f"127.0.0.1:{port}".encode(), None, 1, 1, ctypes.byref(device))


if __name__ == "__main__":
    serve(*sys.argv[1:])
