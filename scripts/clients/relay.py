"""In the sandbox: pass 127.0.0.1:8080 on to a Unix socket, and run a client.

python relay.py SOCKET COMMAND...
"""

import contextlib
import socket
import subprocess
import sys
import threading


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def serve(listening: socket.socket, path: str) -> None:
    while True:
        client, _ = listening.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(path)
        for pair in ((client, server), (server, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


listening = socket.create_server(("127.0.0.1", 8080))
threading.Thread(target=serve, args=(listening, sys.argv[1]), daemon=True).start()
sys.exit(subprocess.call(sys.argv[2:], stdin=subprocess.DEVNULL))
