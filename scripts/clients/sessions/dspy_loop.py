"""DSPy: a signature as text and as JSON, and a ReAct loop with a tool (native calls)."""

import os
import subprocess

import dspy
from dspy.lm15 import (
    AccessPolicy,
    EndpointSupport,
    ModelSupport,
    OpenAIChatCompat,
    ProviderDefinition,
    register_provider,
)

ADDRESS = "http://127.0.0.1:8080/v1"
access = AccessPolicy("edge", EndpointSupport(complete=True, stream=True), ("bearer",), base_url=ADDRESS)
definition = ProviderDefinition.chat(access, compat=OpenAIChatCompat())
register_provider(definition, supports=ModelSupport(function_calling=True, response_schema=True))


def bash(command: str) -> str:
    """Run a shell command."""
    print("tool:", command)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout + done.stderr


def model(name: str) -> dspy.LM:
    return dspy.LM(f"edge/{name}", api_key="none", max_tokens=300, temperature=0.0, cache=False)


with dspy.context(
    lm=model(os.environ["TEXT_MODEL"]), adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)
):
    try:
        print("answer:", dspy.Predict("question -> answer")(question="How many files are here?"))
    except dspy.utils.exceptions.AdapterParseError:
        print("the text of this small model does not have the form that DSPy asks for")
with dspy.context(lm=model("edge"), adapter=dspy.JSONAdapter()):
    print("answer:", dspy.Predict("question -> answer")(question="How many files are here?"))
with dspy.context(lm=model("edge"), adapter=dspy.ChatAdapter(use_native_function_calling=True)):
    react = dspy.ReActV2("question -> answer", tools=[bash], max_iters=3)
    print("answer:", react(question="List the files here."))
