"""LangChain: create_agent with a tool (plain and streamed), and structured output."""

import subprocess

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


def bash(command: str) -> str:
    """Run a shell command."""
    print("tool:", command)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout + done.stderr


class File(BaseModel):
    """A file."""

    name: str
    size: int


model = ChatOpenAI(model="edge", base_url="http://127.0.0.1:8080/v1", api_key="none", max_tokens=200)
agent = create_agent(model, [bash], system_prompt="You run commands.")
result = agent.invoke({"messages": [("user", "List the files here.")]}, {"recursion_limit": 7})
print("ended:", len(result["messages"]))
streaming = create_agent(model.model_copy(update={"streaming": True}), [bash])
for _part in streaming.stream({"messages": [("user", "Show notes.txt.")]}, {"recursion_limit": 7}):
    pass
print("streamed")
print("object:", model.with_structured_output(File, method="json_schema").invoke("A file with its size."))
print(
    "object:", model.with_structured_output(File, method="function_calling").invoke("A file with its size.")
)
