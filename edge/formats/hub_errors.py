"""What a failed request to the Hugging Face hub means: the error line for it, and whether another try can help."""

import os
import re

from edge.errors import HubError, UnknownRepositoryError


def request_errors() -> tuple[type[Exception], ...]:
    """What a request can raise if the connection fails or the hub refuses it.

    huggingface_hub 1 uses httpx, 2 uses httpx2; its own error has their base class.
    """
    from huggingface_hub import errors

    base: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    return (base, ConnectionError, TimeoutError)


def is_final(error: Exception) -> bool:
    """Whether another try or the cache cannot help: the hub has answered, and the answer is no."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code < 500 and error.response.status_code not in (408, 429)
    return not isinstance(error, request_errors())


def why(error: Exception) -> str:
    """The reason in an exception of a request."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_endpoint() -> None:
    """Raise HubError if HF_ENDPOINT is not the address of a server."""
    given = os.environ.get("HF_ENDPOINT")
    if given is None or re.match(r"https?://[^/]", given, re.IGNORECASE):
        return
    host = given.rpartition("//")[2]
    meant = f"give https://{host}, or unset it" if host else "unset it"
    raise HubError(f"HF_ENDPOINT: {given!r} is not an address that begins with https:// or http://; {meant}")


def _settings() -> str:
    """The settings that decide where a request goes, for an error line."""
    names = {name.upper(): name for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "HF_ENDPOINT")}
    found = [name for name in names if os.environ.get(name) or os.environ.get(name.lower())]
    return f" and {', '.join(found)}" if found else " and the proxy"


def failure(where: str, revision: str | None, error: Exception) -> HubError:
    """The error line for an exception of a request."""
    from huggingface_hub import constants, errors

    if isinstance(error, HubError):
        return error
    hub_id = "/".join(where.split("/")[:2])
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    tokens = f"{constants.ENDPOINT}/settings/tokens"
    if isinstance(error, errors.GatedRepoError):
        where, page = hub_id, f"{constants.ENDPOINT}/{hub_id}"
        if status == 403:
            problem = (
                f"is gated, and the account of your token has no access: ask for it on {page}, "
                "wait until it is granted, then try again"
            )
        else:
            problem = f"is gated; accept its terms on {page}, then set HF_TOKEN to a token with read access ({tokens})"
    elif isinstance(error, errors.RepositoryNotFoundError):
        return UnknownRepositoryError(
            f"{where} is neither a local path nor a public hub repository; a private one needs HF_TOKEN"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        where, problem = f"{where} (revision {revision})", "has no such revision; check --revision"
    elif isinstance(error, errors.EntryNotFoundError) and status == 404:
        problem = "the hub no longer has this file"
    elif status == 401:
        problem = f"is refused with your token; set HF_TOKEN to a new one ({tokens})"
    elif not status and isinstance(error, (*request_errors(), errors.LocalEntryNotFoundError)):
        problem = (
            f"cannot be fetched and is not in the local cache; check the network{_settings()} ({why(error)})"
        )
    elif not status and isinstance(error, OSError) and error.strerror:
        where, problem = str(error.filename or constants.HF_HUB_CACHE), f"cannot be written: {error.strerror}"
    elif status >= 500 or status == 429:
        problem = f"cannot be fetched now; try again later ({why(error)})"
    else:
        problem = f"cannot be fetched: {why(error)}"
    colon = ":" if problem.startswith(("cannot be written", "the hub no")) else ""
    return HubError(f"{where}{colon} {problem}")
