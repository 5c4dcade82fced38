"""The page at `/`: only its own script runs, nothing comes from elsewhere, and it opens no door to other pages.

.venv/bin/pytest tests/serve/test_page.py
"""

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tiny_q4: Path) -> Iterator[str]:
    with serving(tiny_q4, "--parallel", "3", "--queue", "7") as address:
        yield address


def test_the_policy_lets_only_the_script_of_the_page_run(server: str) -> None:
    got = httpx.get(f"{server}/")
    assert got.status_code == 200 and got.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in got.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for tag in ("script", "style"):
        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", got.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


def test_the_page_takes_nothing_from_elsewhere(server: str) -> None:
    text = httpx.get(f"{server}/").text
    assert not re.search(r"https?://|//[a-z]+\.|\bon[a-z]+=|style=|innerHTML|eval\(|<iframe|@import", text)
    assert re.findall(r'fetch\("([^"]+)"', text) == ["status", "v1/chat/completions"]
    assert set(re.findall(r'(?:src|href)="([^"]*)"', text)) == {"data:,"}
    for needed in ('name="viewport"', '<html lang="en">', 'label for="prompt"', 'aria-live="polite"'):
        assert needed in text


def test_status_tells_what_is_loaded(server: str) -> None:
    found = httpx.get(f"{server}/status").json()
    assert found["status"] == "ok" and found["error"] is None
    assert found["places"] == {"all": 3, "used": 0} and found["queue"] == {"all": 7, "used": 0}
    assert found["architecture"] == "lfm2moe" and found["file_type"] == "Q4_K_M" and found["context"] == 8192
    assert found["models"][0] and found["file_bytes"] > 1e6 and found["parameters"] > 1e6


def test_the_page_may_ask_and_others_may_not(server: str) -> None:
    ask = {"messages": [{"role": "user", "content": "List."}], "max_tokens": 2}
    for origin, wanted in ((server, 200), ("http://evil.example", 403), (f"{server}1", 403)):
        headers = {"Origin": origin}
        assert httpx.post(f"{server}/v1/chat/completions", json=ask, headers=headers).status_code == wanted
        assert httpx.get(f"{server}/status", headers=headers).status_code == wanted
    for path in ("/", "/status"):
        assert httpx.get(f"{server}{path}", headers={"Host": "evil.example"}).status_code == 403
        assert httpx.post(f"{server}{path}").status_code == 405


def test_with_a_key_only_the_page_itself_is_open(tiny_q4: Path) -> None:
    with serving(tiny_q4, EDGE_API_KEY="sesame") as server:
        page = httpx.get(f"{server}/")
        assert page.status_code == 200 and "tiny" not in page.text
        assert httpx.get(f"{server}/status").status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        assert httpx.get(f"{server}/status", headers=headers).json()["status"] == "ok"
        preflight = httpx.options(f"{server}/status", headers={"Origin": "http://evil.example"})
        assert preflight.status_code == 204 and "access-control-allow-origin" not in preflight.headers
