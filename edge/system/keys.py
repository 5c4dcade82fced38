"""The user's secret key: with it edge seals what only edge on this account may have written.

The key is in the user's state folder, which no sandbox can see. The user's own programs can read it: a seal does not
protect from them.
"""

import hashlib
import hmac
import secrets
import sys
from pathlib import Path

from edge.errors import AgentError
from edge.system.locks import held_lock
from edge.system.paths import state_folder

_KEY_BYTES = 32


def key_path() -> Path:
    """The file of the user's key. Its name is that of its first use."""
    return state_folder() / "session.key"


def derived_key(purpose: str) -> bytes:
    """The key for one purpose, 32 bytes. It reveals nothing about the keys for other purposes (HMAC-SHA256).

    Makes the user's key if there is none. Raises AgentError if it is damaged or cannot be read, ConfigError without a
    home folder.
    """
    return hmac.new(_user_key(), purpose.encode(), hashlib.sha256).digest()


def _user_key() -> bytes:
    path = key_path()
    try:
        with held_lock(path, lambda: None):
            if sys.platform != "win32":
                path.chmod(0o600)
            key = path.read_bytes()
            if not key:
                key = secrets.token_bytes(_KEY_BYTES)
                path.write_bytes(key)
    except OSError as error:
        raise AgentError(f"{path}: the key of the session records: {error.strerror or error}") from None
    if len(key) != _KEY_BYTES:
        raise AgentError(
            f"{path}: is damaged: remove it; sessions that began before cannot be continued then"
        )
    return key
