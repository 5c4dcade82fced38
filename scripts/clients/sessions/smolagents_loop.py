"""Smolagents: the agents that call tools (plain and streamed), and the agent that writes code (as text and as JSON)."""

import os
import subprocess

from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool

ran: list[str] = []


@tool
def bash(command: str) -> str:
    """Run a shell command.

    Args:
        command: The command.
    """
    print("tool:", command)
    ran.append(command)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout + done.stderr


def model(name: str, **more: object) -> OpenAIModel:
    return OpenAIModel(
        model_id=name, api_base="http://127.0.0.1:8080/v1", api_key="none", max_tokens=300, **more
    )


task = "List the files here."
for stream in (False, True):
    for _try in range(8):  # a small model often calls final_answer at once
        one_call = model("edge", parallel_tool_calls=False, temperature=1.5)
        agent = ToolCallingAgent(tools=[bash], model=one_call, max_steps=2, stream_outputs=stream)
        print("ended:", str(agent.run(task))[:80])
        if ran:
            break
agent = CodeAgent(tools=[bash], model=model(os.environ["TEXT_MODEL"]), max_steps=2)
print("ended:", str(agent.run(task))[:80])
agent = CodeAgent(tools=[bash], model=model("edge"), max_steps=2, use_structured_outputs_internally=True)
print("ended:", str(agent.run(task))[:80])
