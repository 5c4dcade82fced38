"""Pydantic AI: an agent with a tool, output as a tool call, and native output."""

import subprocess

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, UsageLimits
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url="http://127.0.0.1:8080/v1", api_key="none")
model = OpenAIChatModel("edge", provider=provider, settings={"max_tokens": 200})


class File(BaseModel):
    """A file."""

    name: str
    size: int


agent = Agent(model)


@agent.tool_plain
def bash(command: str) -> str:
    """Run a shell command."""
    print("tool:", command)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout + done.stderr


result = agent.run_sync("List the files here.", usage_limits=UsageLimits(request_limit=6))
print("ended:", len(result.all_messages()))
print("object:", Agent(model, output_type=File).run_sync("A file with its size.").output)
print("object:", Agent(model, output_type=NativeOutput(File)).run_sync("A file with its size.").output)
