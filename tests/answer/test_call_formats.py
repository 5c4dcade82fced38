"""The forms of calls against the models' real chat templates: what the constraint allows comes back as the same text.

.venv/bin/pytest tests/answer/test_call_formats.py
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_tools import liked_tokens, random_answer, random_tools
from real_templates import TEMPLATES, needs_templates

from edge.answer.endings import Endings
from edge.answer.tools import compile_calls
from edge.errors import GrammarError, PromptError
from edge.llama.vocabulary import Vocabulary, file_vocabulary
from edge.prompt import CHAT_TEMPLATE, Message, Rendered, render_chat_template
from edge.serve.messages import template_messages
from edge.serve.tool_prompt import recognize

FORMS = {
    "LFM2.5-8B-A1B": "lfm2",
    "LFM2.5-Instruct": "lfm2-keywords",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen3-Coder": "qwen-xml",
    "Qwen3.5-4B": "qwen-xml",
    "google-gemma-4-31B-it": "gemma",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral-list",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral-id",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
    "openai-gpt-oss-120b": "harmony",
    "google-gemma-2-2b-it": "hermes",  # edge's own: the template has no tools
    "microsoft-Phi-3.5-mini-instruct": "hermes",
}
OWN = ("LFM2.5-Instruct", "google-gemma-2-2b-it", "microsoft-Phi-3.5-mini-instruct")


@pytest.fixture(scope="module")
def vocabulary(tiny_q4: Path) -> Iterator[Vocabulary]:
    with file_vocabulary(tiny_q4) as found:
        yield found


def renderer(name: str) -> Any:
    def render(messages: Sequence[Message], variables: Mapping[str, Any]) -> Rendered:
        try:
            text = render_chat_template(
                messages, template=TEMPLATES[name], bos_token="<s>", eos_token="</s>", **variables
            )
        except PromptError as error:
            return Rendered("", "chatml_fallback", str(error))
        return Rendered(text, CHAT_TEMPLATE)

    return render


@pytest.mark.slow
@needs_templates
@pytest.mark.parametrize("name", FORMS)
def test_calls_come_back_as_the_same_text(name: str, vocabulary: Vocabulary) -> None:
    render = renderer(name)
    found = recognize(render)
    assert found.form.name == FORMS[name]
    assert found.shows_calls == (name not in OWN)
    endings = Endings(vocabulary.matcher_tokens(), sorted(vocabulary.end_ids))
    liked = liked_tokens(vocabulary)
    tried = 0
    for number in range(12):
        rng = random.Random(number)
        tools = random_tools(rng)
        try:
            calls = compile_calls(vocabulary, endings, found.form, tools, many=True)
        except GrammarError:
            continue
        answer, _ = random_answer(
            vocabulary, endings, calls, rng, must=True, max_tokens=calls.shortest + 60, liked=liked
        )
        listed = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ]
        history: list[Message] = [
            {"role": "user", "content": "Do it."},
            {"role": "assistant", "content": None, "tool_calls": listed},
            *({"role": "tool", "tool_call_id": call.id, "content": "done"} for call in answer.calls),
        ]
        declared = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": "A tool.", "parameters": tool.parameters},
            }
            for tool in tools
        ]
        messages, variables = found.prepare(template_messages(history), declared)
        rendered = render(messages, variables)
        if (
            rendered.reason
        ):  # the template cannot write these schemas; the server then describes the tools itself
            messages, variables = replace(found, shows_tools=False).prepare(
                template_messages(history), declared
            )
            rendered = render(messages, variables)
        assert not rendered.reason
        text = rendered.text
        assert answer.raw in text and "done" in text and all(tool.name in text for tool in tools)
        tried += 1
    assert tried > 5
