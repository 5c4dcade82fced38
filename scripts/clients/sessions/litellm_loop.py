"""LiteLLM: a loop of tool calls, a stream with one, and the error of a prompt that is too long."""

import json
import subprocess

import litellm

base = {"model": "openai/edge", "api_base": "http://127.0.0.1:8080/v1", "api_key": "none", "max_tokens": 200}
command = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
tools = [{"type": "function", "function": {"name": "bash", "description": "Run it.", "parameters": command}}]
messages: list = [{"role": "user", "content": "List the files here."}]
for _turn in range(3):
    message = litellm.completion(messages=messages, tools=tools, **base).choices[0].message
    messages.append(message)
    for call in message.tool_calls or []:
        line = json.loads(call.function.arguments)["command"]
        print("tool:", line)
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=False)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": done.stdout + done.stderr})
    if not message.tool_calls:
        break
parts = list(
    litellm.completion(messages=messages[:1], tools=tools, tool_choice="required", stream=True, **base)
)
built = litellm.stream_chunk_builder(parts)
print(
    "streamed:",
    built.choices[0].finish_reason,
    json.loads(built.choices[0].message.tool_calls[0].function.arguments),
)
try:
    litellm.completion(messages=[{"role": "user", "content": "word " * 100_000}], **base)
except litellm.ContextWindowExceededError:
    print("too long: ContextWindowExceededError")
