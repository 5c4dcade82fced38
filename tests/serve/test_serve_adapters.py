"""`edge serve --lora`: `model` names the base or an adapter, also for requests that are answered at the same time.

pytest tests/serve/test_serve_adapters.py
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from make_adapter import make_adapter
from served import serving

from edge.convert import convert, convert_adapter
from edge.errors import ServeError
from edge.llama.loading import Adapter, Loading
from edge.runner import Runner
from edge.serve.server import serve

pytestmark = pytest.mark.slow
MESSAGES: Any = [{"role": "user", "content": "Remove the file old.log."}]
TOKENS = 40


@pytest.fixture(scope="module")
def files(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The embedded model in F32, whose answers do not depend on the batch, and two adapters."""
    place = tmp_path_factory.mktemp("serve")
    base = convert(tiny_folder, quant="F32", out=place / "base.gguf", threads=1).path
    adapters = []
    for seed, name in ((1, "one"), (2, "two")):
        folder = make_adapter(tiny_folder, place / name, seed=seed, size=3.0)
        adapters.append(convert_adapter(folder, tiny_folder, out=place / f"{name}.gguf").path)
    return base, adapters


@pytest.fixture(scope="module")
def expected(files: tuple[Path, list[Path]]) -> dict[str, str]:
    """The answer of each model alone."""
    base, (one, two) = files
    found = {}
    for name, adapters in (("base", ()), ("one", (Adapter(one),)), ("two", (Adapter(two, 0.5),))):
        with Runner.open(base, Loading(gpu_layers=0, threads=1, adapters=adapters)) as runner:
            found[name] = runner.act(MESSAGES, TOKENS).text
    assert len(set(found.values())) == 3, "the adapters change nothing"
    return found


@pytest.fixture(scope="module")
def address(files: tuple[Path, list[Path]]) -> Iterator[str]:
    base, (one, two) = files
    with serving(base, "--lora", one, "--lora", f"{two}:0.5", "--parallel", 4, "--context", 1024) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def answer(client: openai.OpenAI, model: str) -> str:
    got = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=TOKENS, temperature=0)
    assert got.model == model
    return got.choices[0].message.content or ""


def test_models_lists_the_base_and_its_adapters(client: openai.OpenAI, address: str) -> None:
    listed = client.models.list().data
    assert [(model.id, (model.model_extra or {}).get("parent")) for model in listed] == [
        ("base", None),
        ("one", "base"),
        ("two", "base"),
        ("base-text", "base"),
        ("one-text", "base"),
        ("two-text", "base"),
    ]
    assert client.models.retrieve("two").id == "two"
    assert httpx.get(f"{address}/v1/models/three").status_code == 404


def test_model_names_the_adapter(client: openai.OpenAI, expected: dict[str, str]) -> None:
    """In turn, twice: what was read for one is not used for another."""
    for name in ("base", "one", "two", "two", "base", "one"):
        assert answer(client, name) == expected[name]
    stream = client.chat.completions.create(
        model="one", messages=MESSAGES, max_tokens=TOKENS, temperature=0, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected["one"]
    assert {chunk.model for chunk in chunks} == {"one"}


def test_at_the_same_time(client: openai.OpenAI, expected: dict[str, str]) -> None:
    names = ["base", "one", "two"] * 4
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda name: answer(client, name), names))
    assert got == [expected[name] for name in names]


def test_completions_name_one_too(client: openai.OpenAI) -> None:
    texts = {
        name: client.completions.create(model=name, prompt="rm -r", max_tokens=12, temperature=0)
        .choices[0]
        .text
        for name in ("base", "one", "two")
    }
    assert len(set(texts.values())) > 1


def test_a_name_that_is_not_served(client: openai.OpenAI, address: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        answer(client, "three")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    assert "use one of base, one, two" in str(caught.value)
    body = {"messages": MESSAGES, "max_tokens": 4}
    refused = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert refused.status_code == 404 and "no model is named" in refused.text
    for wrong in (7, ["one"], None):
        refused = httpx.post(f"{address}/v1/chat/completions", json={**body, "model": wrong})
        assert refused.status_code == 404


def test_one_adapter_answers_for_any_name(files: tuple[Path, list[Path]], expected: dict[str, str]) -> None:
    """Agents that send a fixed name get the model with its adapter; the base's name gets the base."""
    base, (one, _) = files
    with (
        serving(base, "--lora", one, "--context", 1024) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        for name, wanted in (("edge", "one"), ("base", "base"), ("one", "one"), ("", "one")):
            got = client.chat.completions.create(
                model=name, messages=MESSAGES, max_tokens=TOKENS, temperature=0
            )
            assert (got.model, got.choices[0].message.content) == (wanted, expected[wanted])


def test_two_files_of_one_name_are_refused(files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    base, (one, _) = files
    same = tmp_path / "base.gguf"
    same.write_bytes(one.read_bytes())
    with pytest.raises(
        ServeError, match="base is also the name of another file that is served; rename one of them"
    ):
        serve(base, loading=Loading(adapters=(Adapter(same),)))
