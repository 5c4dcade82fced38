"""Devices of other machines: the servers of llama.cpp's RPC backend (docs/scale.md).

llama.cpp's client stops the process if it cannot reach a server. So edge asks a server for its version before llama.cpp
connects to it. If a server is lost later, the process still ends: edge.llama.aborts makes one line of it.
"""

import ctypes
import re
import socket
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from edge.errors import EdgeError
from edge.llama import library
from edge.llama.devices import Device, devices, ggml_library
from edge.llama.loading import Loading

_ENDPOINT = re.compile(r"([^\s:/]+):([0-9]{1,5})")
_CONNECT, _ANSWER = 5.0, 5.0  # seconds
# ggml-rpc.cpp: RPC_CMD_HELLO, with the capabilities of the connection (RPC_CONN_CAPS_SIZE); none here: plain TCP
_HELLO, _CAPABILITIES = 14, 24


def devices_for(loading: Loading) -> list[Device]:
    """The devices of the installed llama.cpp, those of the RPC servers in `loading` among them. Raises as `connect`."""
    connect(loading.spread.rpc)
    return devices()


def connect(endpoints: Sequence[str]) -> None:
    """Make the devices of these RPC servers known to llama.cpp, once for the process.

    `endpoints`: HOST:PORT each. Raises EdgeError if one is not of this form, if llama.cpp was built without its RPC
    backend, or if no such server answers there.
    """
    for endpoint in endpoints:
        _connect(endpoint)


@cache
def _connect(endpoint: str) -> None:
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None or not 1 <= int(found[2]) <= 65535:
        raise EdgeError(f"{endpoint[:80]!r} is not HOST:PORT, for example 127.0.0.1:50052", option="--rpc")
    library.start()
    add = _add_server()
    _ask(endpoint, found[1], int(found[2]))
    registered = add(endpoint.encode())
    if not registered:
        raise EdgeError(f"--rpc {endpoint}: the server there has no device")
    register = ggml_library().ggml_backend_register
    register.argtypes, register.restype = [ctypes.c_void_p], None
    register(registered)


def _add_server() -> Callable[[bytes], Any]:
    """`ggml_backend_rpc_add_server` of the installed llama.cpp. Raises EdgeError if it was built without it."""
    found = None
    try:
        lib = ggml_library()
        by_name, address = lib.ggml_backend_reg_by_name, lib.ggml_backend_reg_get_proc_address
    except AttributeError:  # on Windows, only the exports of one library are visible
        pass
    else:
        by_name.argtypes, by_name.restype = [ctypes.c_char_p], ctypes.c_void_p
        address.argtypes, address.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p
        backend = by_name(b"RPC")
        found = address(backend, b"ggml_backend_rpc_add_server") if backend else None
    if not found:
        raise EdgeError(
            "--rpc: the installed llama.cpp was built without its RPC backend; install it again with "
            'CMAKE_ARGS="-DGGML_RPC=on"'
        )
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(found)


def _ask(endpoint: str, host: str, port: int) -> None:
    """Raises EdgeError unless an RPC server answers there. It serves one client at a time, so this one leaves again."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT) as line:
            line.settimeout(_ANSWER)
            line.sendall(struct.pack("<BQ", _HELLO, _CAPABILITIES) + bytes(_CAPABILITIES))
            with line.makefile("rb") as answer:
                head = answer.read(8)
                body = answer.read(4) if head == struct.pack("<Q", 4 + _CAPABILITIES) else b""
    except TimeoutError:
        raise EdgeError(
            f"--rpc {endpoint}: no answer in {_ANSWER:.0f} s; an RPC server has one client at a time, so end the other "
            "one, or the network drops what is sent"
        ) from None
    except OSError as error:
        raise EdgeError(
            f"--rpc {endpoint}: cannot be reached: {error.strerror or error}; start llama.cpp's RPC server there"
        ) from None
    if len(body) != 4:
        raise EdgeError(
            f"--rpc {endpoint}: what answers there is not llama.cpp's RPC server, or is of another version: use the "
            "one of the same llama.cpp"
        )
