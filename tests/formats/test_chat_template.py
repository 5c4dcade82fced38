"""Chat templates: edge renders them as transformers does, byte for byte, and stops a hostile one.

Run: .venv/bin/python -m pytest tests/formats/test_chat_template.py
The tests read llama.cpp's templates from the llama-cpp-python sdist in build/sdist, where `make test` puts it. They
are skipped without it.
"""
# ruff: noqa: E501  one line for each template

import functools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_templates import TEMPLATES, needs_templates

from edge.errors import PromptError
from edge.formats.chat_template import find_hostile
from edge.prompt import Rendered, prompt_source, render_chat_template, render_prompt

ROOT = Path(__file__).resolve().parents[2]
THOUGHT = "<think>\nI should list the files first.\n</think>\n"
ACTION = '{"analysis": "새 폴더 <b>&</b>", "plan": "ls", "commands": [], "task_complete": false}'
CALL = {
    "type": "function",
    "id": "call00001",
    "function": {"name": "shell", "arguments": {"keys": "ls <x> 한\n"}},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "shell",
        "description": "Type <keys> & wait",
        "parameters": {"type": "object", "properties": {"keys": {"type": "string", "description": "키"}}},
    },
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": [{"role": "user", "content": "List the files.\n"}],
    "system": [
        {"role": "system", "content": "Return JSON only."},
        {"role": "user", "content": "  List files  "},
    ],
    "turns": [
        {"role": "user", "content": "List the files."},
        {"role": "assistant", "content": ACTION},
        {"role": "user", "content": "New Terminal Output:\n$ ls\na.py\n<div>'&\"\n{{ x }} {% y %}"},
    ],
    "thought": [
        {"role": "system", "content": "Return JSON only."},
        {"role": "user", "content": "List the files."},
        {"role": "assistant", "content": THOUGHT + ACTION},
        {"role": "user", "content": "a.py"},
        {"role": "assistant", "content": ACTION, "reasoning_content": "Nothing more.", "name": None},
        {"role": "user", "content": "Go on."},
    ],
    "reasoning": [
        {"role": "user", "content": "List the files."},
        {"role": "assistant", "content": ACTION, "reasoning": "Files first."},
        {"role": "user", "content": "Go on."},
    ],
    "tool": [
        {"role": "user", "content": "List the files."},
        {"role": "assistant", "content": THOUGHT + ACTION},
        {"role": "tool", "content": "a.py\nb.py", "name": "shell", "tool_call_id": "call00001"},
    ],
    "tool call": [
        {"role": "user", "content": "List the files."},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "a.py\nb.py", "name": "shell", "tool_call_id": "call00001"},
        {"role": "assistant", "content": "Two files."},
        {"role": "user", "content": "Thanks."},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "List "}, {"type": "text", "text": "files."}]}
    ],
}
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def tokenizer(**special_tokens: str) -> Any:
    """A real transformers tokenizer, which its chat template code needs."""
    vocabulary = {token: i for i, token in enumerate(["a", *special_tokens.values()])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special_tokens)


def both(
    template: str, messages: list[dict[str, Any]], tokens: dict[str, str], **variables: Any
) -> tuple[str | None, str]:
    """The output of transformers (None: it raises), and of edge ("": it raises)."""
    reference = tokenizer(**tokens)
    try:
        expected = reference.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True, **variables
        )
        expected.encode("utf-8")
    except Exception:
        expected = None
    special = {"bos_token": None, "eos_token": None, **tokens}
    try:
        ours = render_chat_template(messages, template=template, **special, **variables)
    except PromptError as error:
        assert "\n" not in str(error)
        ours = ""
    return expected, ours


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.mark.slow
@needs_templates
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_real_templates(name: str) -> None:
    template = TEMPLATES[name]
    renderable = 0
    for kind, messages in CONVERSATIONS.items():
        for variables in ({}, {"tools": [TOOL]}, {"enable_thinking": False}):
            expected, ours = both(template, messages, SPECIAL, **variables)
            assert ours == (expected or ""), (kind, variables)
            renderable += expected is not None
        expected, ours = both(template, messages, {"eos_token": "</s>"})
        assert ours == (expected or ""), (kind, "without BOS")
    if not renderable:
        pytest.skip("transformers itself cannot render it")


@pytest.mark.slow
@needs_templates
def test_which_real_templates_take_a_plain_message() -> None:
    refused = {
        name
        for name, template in TEMPLATES.items()
        if both(template, CONVERSATIONS["plain"], SPECIAL)[0] is None
    }
    assert len(TEMPLATES) >= 70
    assert refused == {  # they need tools, or a function that transformers does not have
        "CohereForAI-c4ai-command-r-plus-tool_use",
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        "fireworks-ai-llama-3-firefunction-v2",
    }


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_smollm2_template(name: str) -> None:
    expected, ours = both(
        SMOLLM2, CONVERSATIONS[name], {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    )
    assert ours == (expected or "")
    assert (expected is None) == (name == "parts")


@pytest.mark.parametrize("name", ["smollm2_folder", "tiny_folder"])
def test_checkpoints(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    source = prompt_source(folder)
    assert (source.bos_token, source.eos_token) == (reference.bos_token, reference.eos_token)
    rendered = 0
    for messages in CONVERSATIONS.values():
        try:
            expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TypeError:  # neither accepts a list of parts
            assert render_prompt(messages, source).status == "chatml_fallback"
        else:
            assert render_prompt(messages, source) == Rendered(expected, "chat_template")
            rendered += 1
    assert rendered >= 6


def test_smollm2_template_is_the_real_one(smollm2_folder: Path) -> None:
    assert prompt_source(smollm2_folder).template == SMOLLM2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder_name", "file_name"), [("smollm2_folder", "smollm2_bf16"), ("tiny_folder", "tiny_bf16")]
)
def test_a_gguf_makes_its_checkpoints_prompts(
    folder_name: str, file_name: str, request: pytest.FixtureRequest
) -> None:
    folder, file = (
        prompt_source(request.getfixturevalue(folder_name)),
        prompt_source(request.getfixturevalue(file_name)),
    )
    assert (file.template, file.bos_token, file.eos_token) == (
        folder.template,
        folder.bos_token,
        folder.eos_token,
    )
    for messages in CONVERSATIONS.values():
        assert render_prompt(messages, file) == render_prompt(messages, folder)


# What templates use of the settings, each on its own: (template, what it must write).
FEATURES = {
    "trim": "{% if true %}\n  {% set x = 1 %}\n  {{ x }}\n{% endif %}\nend",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% generation %}\n{{ messages[0].content }}\n{% endgeneration %}x{%- generation -%} y {%- endgeneration -%}",
    "tojson": "{{ messages | tojson }}{{ {'b': '<é>', 'a': [1]} | tojson(indent=2, sort_keys=true) }}",
    "separators": "{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}{{ 'é' | tojson(ensure_ascii=True) }}",
    "strftime": "{{ strftime_now('%Y-%m') }}",
    "undefined bos": "[{{ bos_token }}]{% if bos_token is defined %}defined{% endif %}{{ bos_token is none }}",
    "pad": "[{{ pad_token }}]",
    "tools none": "{{ tools is none }}{{ documents is none }}{{ tools is defined }}",
    "namespace": "{% set ns = namespace(x='', self=1) %}{% for m in messages %}{% set ns.x = ns.x ~ m.role %}{% endfor %}{{ ns.x }}",
    "macro": "{% macro m(x, y=2) %}{{ x }}/{{ y }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}{% call m(3, y=4) %}in{% endcall %}",
    "set block": "{% set x %}a{{ 1 }}\n{% endset %}[{{ x }}]{% set y | upper %}b{% endset %}{{ y }}{% filter title %}c{% endfilter %}",
    "recursive": "{% for x in [1, [2, [3]]] recursive %}{% if x is number %}{{ x }}{% else %}({{ loop(x) }}){% endif %}{% endfor %}",
    "loop": "{% for m in messages if m.role != 'x' %}{{ loop.index0 }}{{ loop.length }}{{ loop.last }}{{ loop.nextitem is defined }}"
    "{{ (loop.previtem or m).role }}{{ loop.revindex }}{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{% else %}none{% endfor %}",
    "empty loop": "{% for m in [] %}x{% else %}none{% endfor %}{% for m in nothing %}x{% else %}nil{% endfor %}",
    "dict loop": "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}{% for k in {'z': 1} %}{{ k }}{% endfor %}",
    "dict": "{{ dict(a=1) | tojson }}{{ dict.fromkeys(['q']) | tojson }}{{ dict([('x', 9)])['x'] }}",
    "arithmetic": "{{ 2 ** 10 }} {{ 'ab' * 3 }} {{ [1] * 2 + [3] }} {{ 7 % 4 }} {{ '%05.1f|%s' % (2.5, 'x') }} {{ 7 // 2 }}{{ 1 + 1 }}",
    "formats": "{{ '{:>8}|{!r}'.format('x', 'y') }}{{ '%s-%d' | format('a', 3) }}{{ 'a' | center(5) }}{{ 'a\nb' | indent(2) }}",
    "large numbers": "{{ 12345678901 }}{{ x | default(99999999999) }}{{ {'a': 10000000}.get('b', 5000000) }}{{ 20000000 | string }}",
    "strings": "{{ messages[0].content.strip().split(' ')[-1][::-1] }}{{ 'a,b'.split(',') | join('-') }}{{ 'abc'[1:] }}",
    "filters": "{{ messages | map(attribute='role') | unique | list }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "tests": "{{ messages is iterable }}{{ messages is mapping }}{{ 'x' is string }}{{ tools is defined and tools }}",
    "raise": "{{ raise_exception('no') }}",
    "bad syntax": "{% for %}",
    "missing filter": "{{ 1 | nothing }}",
    "private": "{{ messages.__class__ }}{{ ''.__class__.__mro__ }}",
    "private name": "{% set ns = namespace(_x=1) %}",
    "private set": "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "mutation": "{{ messages.append(1) }}",
    "mutation of dict": "{{ messages[0].update({'role': 'x'}) }}",
    "lone surrogate": "{{ '\ud800' }}",
    "include": "{% include 'x' %}",
    "methods in a loop": "{% for m in messages %}{{ m.role.replace('s', '/') }}{{ ', '.join([m.role, 'x']) }}{{ '{}'.format(m.role) }}{% endfor %}",
    "wide range": "{% for i in range(1000000) %}{% endfor %}",
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("tokens", [{"eos_token": "</s>"}, SPECIAL], ids=["eos only", "all tokens"])
def test_features(name: str, tokens: dict[str, str]) -> None:
    for conversation in CONVERSATIONS.values():
        expected, ours = both(FEATURES[name], conversation, tokens)
        assert ours == (expected or "")


def test_features_render() -> None:
    """Most of the features above work; they do not only fail in the same way."""
    working = [
        name for name, template in FEATURES.items() if both(template, CONVERSATIONS["turns"], SPECIAL)[0]
    ]
    assert len(working) >= 22


def test_values_are_made_plain() -> None:
    class Loud(str):
        def write(self) -> str:
            return "written"

    class Thing:
        def write(self) -> str:
            return "written"

    template = (
        "{{ x.write() if x.write is defined else x }}{{ y.z.write() if y.z.write is defined else y.z }}"
    )
    expected, ours = both(template, CONVERSATIONS["plain"], {}, x=Loud("quiet"), y={"z": Thing()})
    assert ours == expected == "quiet<Thing>"


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": "x", "reasoning": "y", "name": None}]
    render_chat_template(messages, template="{{ messages | tojson }}", bos_token=None, eos_token=None)
    assert messages == [{"role": "user", "content": "x", "reasoning": "y", "name": None}]


HOSTILE = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "deep macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling": "{% set n = namespace(x='ab') %}{% for i in range(90) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "adding": "{% set n = namespace(x='ab') %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "block": "{% set n = namespace(x='ab') %}{% for i in range(90) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "times": "{{ 'a' * 9999999999 }}",
    "list times": "{{ ([0] * 9999999999) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(90) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "center": "{{ 'a' | center(99999999999) }}",
    "indent": "{{ 'a\nb' | indent(99999999999) }}",
    "tojson": "{{ [1] | tojson(indent=9999999999) }}",
    "batch": "{{ [1] | batch(9999999999, 'x') | list }}",
    "ljust": "{{ 'a'.ljust(99999999999) }}",
    "percent": "{{ '%99999999999d' % 1 }}",
    "star": "{{ '%*d' % (999999999, 1) }}",
    "format": "{{ '{:99999999999}'.format(1) }}",
    "format width": "{{ '{:{}}'.format(1, 9999999999) }}",
    "format filter": "{{ '%99999999999d' | format(1) }}",
    "lipsum": "{{ lipsum(100000000) }}",
    "block of output": "{% set x %}{% for i in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}{% endset %}",
    "replace": "{{ ('a'*30000).replace('a','b'*30000) }}",
    "replace filter": "{{ ('a'*30000) | replace('a','b'*30000) }}",
    "replace nothing": "{{ ('a'*30000).replace('','b'*30000) }}",
    "replace bytes": "{{ ('a'*30000).encode().replace('a'.encode(),('b'*30000).encode()) | length }}",
    "join": "{{ ('a'*30000).join('b'*30000) }}",
    "join filter": "{{ ('b'*30000) | list | join('a'*30000) }}",
    "join of mapped": "{{ range(30000) | map('string') | join('a'*30000) }}",
    "join of itself": "{{ [('a'*30000)] * 30000 | join }}{{ ([('a'*30000)] * 30000) | join }}",
    "list as text": "{{ ([('a'*30000)] * 30000) }}",
    "list joined": "{{ ([('a'*30000)] * 30000) ~ 'x' }}",
    "nested lists": "{% set a = ['x'*99] * 999 %}{% set b = [a] * 999 %}{% set c = [b] * 999 %}{{ c | string | length }}",
    "list as JSON": "{{ ([('a'*30000)] * 30000) | tojson }}",
    "JSON indented": "{{ ([1] * 300000) | tojson(indent=100000) }}",
    "JSON separated": "{{ ([1] * 30000) | tojson(separators=('a' * 30000, ':')) }}",
    "namespace as text": "{% set n = namespace(x=['a'*30000] * 30000) %}{{ n }}",
    "values as text": "{{ {'x': ['a'*30000] * 30000}.values() }}",
    "many indented": "{{ ('a\n' * 30000) | indent(30000) }}",
    "tabs": "{{ ('\t' * 30000).expandtabs(30000) }}",
    "translate": "{{ ('a' * 30000).translate({97: 'b' * 30000}) }}",
    "percents": "{{ ('%(a)s' * 30000) % {'a': 'a' * 30000} }}",
    "percents of a tuple": "{{ ('%s' * 30000) % (('a' * 30000,) * 30000) }}",
    "wide percents": "{{ ('%30000d' * 30000) % ((1,) * 30000) }}",
    "wide bytes": "{{ '%99999999999d'.encode() % 1 }}",
    "formats": "{{ ('{0}' * 30000).format('a' * 30000) }}",
    "wide formats": "{{ ('{0:30000}' * 30000).format(1) }}",
    "formats of a map": "{{ ('{a}' * 30000).format_map({'a': 'a' * 30000}) }}",
    "formats by filter": "{{ ('%(a)s' * 30000) | format(a='a' * 30000) }}",
    "sum": "{{ ([[1] * 4000] * 4000) | sum(start=[]) | length }}",
    "wrapped": "{{ ('a' * 30000) | wordwrap(1, wrapstring='b' * 30000) }}",
    "bytes of a number": "{{ (1).to_bytes(9999999999, 'big') | length }}",
    "many lists": "{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = n.x + [[1] * 4000000] %}{% endfor %}",
    "the same text often": "{% set a = 'a' * 1000000 %}{% set x %}{% for i in range(99999) %}{{ a }}{% endfor %}{% endset %}",
    "time": "{{ strftime_now('%c' * 9999999) }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000000 }}{% endfor %}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str) -> None:
    start = time.process_time()
    with pytest.raises(PromptError, match="the chat template cannot be rendered: ") as caught:
        render_chat_template(CONVERSATIONS["plain"], template=HOSTILE[name], bos_token=None, eos_token=None)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 30


@pytest.mark.slow
def test_hostile_templates_take_little_memory() -> None:
    """edge refuses a value that would fill the memory before the template makes it. Without those that only loop."""
    templates = {
        name: text
        for name, text in HOSTILE.items()
        if name not in ("nested loops", "filtered loop", "macros")
    }
    code = """if True:
        import json, resource, sys
        from edge.errors import PromptError
        from edge.prompt import render_chat_template
        resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))
        for name, template in json.load(sys.stdin).items():
            chat = [{'role': 'user', 'content': 'x'}]
            try:
                render_chat_template(chat, template=template, bos_token=None, eos_token=None)
            except PromptError as error:
                print(name + ':', error)
    """
    run = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(templates), capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert [line.partition(":")[0] for line in run.stdout.splitlines()] == [*templates]
    assert "MemoryError" not in run.stdout


@pytest.mark.slow
def test_no_honest_template_is_taken_for_hostile() -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    for template in (SMOLLM2, *TEMPLATES.values()):
        assert find_hostile(template, tokens) is None
    for name, template in FEATURES.items():
        reason = find_hostile(template, tokens)
        assert (reason is not None) == name.startswith("private"), (name, reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        # Nobody can use the other two templates: one names something undefined, the other has a type error.
        *(text for name, text in HOSTILE.items() if name not in ("lipsum", "join of itself")),
        "{{ ''.__class__ }}",
        "{{ ''['__cla' ~ 'ss__'].mro() }}",
        "{% if messages | length > 99 %}{{ x['__globals__'] }}{% endif %}",
        "{% if false %}{{ x | attr('__init__') }}{{ [x] | map(attribute='y.__class__') | list }}{% endif %}",
        "{% if messages[-1].role == 'user' and messages | length > 2 %}{{ 'a' * 9999999999 }}{% endif %}",
    ],
)
def test_hostile_templates_are_found(template: str) -> None:
    start = time.process_time()
    reason = find_hostile(template, {})
    assert reason
    assert "\n" not in reason
    assert time.process_time() - start < 30


def test_a_stopped_template_leaves_the_next_one_alone() -> None:
    with pytest.raises(PromptError):
        render_chat_template(
            CONVERSATIONS["plain"], template=HOSTILE["doubling"], bos_token=None, eos_token=None
        )
    long = [{"role": "user", "content": "x" * 1_000_000}] * 20
    text = render_chat_template(long, template=SMOLLM2, bos_token=None, eos_token=None)
    assert text.count("x") == 20_000_000


texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        THOUGHT + ACTION,
        "<think>\n\n</think>",
        "</think>x",
        "<think>",
        "\n",
        " ",
        "",
        "{{ 1 }}",
        "<|im_end|>",
        "<s>",
    ]
)
random_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "other"]), "content": texts},
        optional={"reasoning_content": texts | st.none(), "thinking": texts, "name": texts | st.none()},
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(random_messages)
def test_random_messages_smollm2(messages: list[dict[str, Any]]) -> None:
    expected, ours = both(SMOLLM2, messages, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    assert ours == (expected or "")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=random_messages)
def test_random_messages_embedded_model(tiny_folder: Path, messages: list[dict[str, Any]]) -> None:
    source = prompt_source(tiny_folder)
    expected, ours = both(
        source.template or "", messages, {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>"}
    )
    assert ours == (expected or "")


@needs_templates
@settings(max_examples=60, deadline=None)
@given(random_messages, st.booleans())
def test_random_messages_lfm2(messages: list[dict[str, Any]], think: bool) -> None:
    for name in ("LFM2.5-8B-A1B", "Qwen-Qwen3-0.6B"):
        expected, ours = both(TEMPLATES[name], messages, SPECIAL, enable_thinking=think)
        assert ours == (expected or "")
