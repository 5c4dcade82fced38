"""The seals of session records and of their archives: edge continues only what edge wrote on this account.

The key is the user's (edge/system/keys.py), which no sandbox can see. So a session in a sandbox cannot make or change
the record of another session. The user's own programs can read the key: the seal does not protect from them.
"""

import hashlib
import hmac
import re

from edge.system.keys import derived_key

_SEALED = re.compile(rb', "seal": "([0-9a-f]{64})"\}\Z')


def session_key(session: str, what: str) -> bytes:
    """The key of one session for one kind of its files. Makes the user's key if there is none. Raises AgentError."""
    return derived_key(f"{what} {session}")


def seal_line(line: bytes, before: bytes, key: bytes) -> tuple[bytes, bytes]:
    """A JSON object of one line with its seal as the last field, and that seal.

    `before`: the seal of the line before.
    """
    seal = _mac(key, before + line)
    return line[:-1] + b', "seal": "' + seal.hex().encode() + b'"}', seal


def lines_are_sealed(lines: list[bytes], key: bytes) -> bytes | None:
    """The seal of the last line; None if a line does not have the seal that `seal_line` gives it."""
    before = b""
    for line in lines:
        found = _SEALED.search(line)
        if found is None:
            return None
        seal = _mac(key, before + line[: found.start()] + b"}")
        if not hmac.compare_digest(seal.hex().encode(), found[1]):
            return None
        before = seal
    return before


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()
