"""The OpenAI package: a loop of tool calls, a stream with one, and an answer of /v1/responses."""

import json
import subprocess

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
command = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
bash = {"name": "bash", "description": "Run a shell command.", "parameters": command}
messages: list = [{"role": "user", "content": "List the files here."}]


def run(arguments: str) -> str:
    line = json.loads(arguments)["command"]
    print("tool:", line)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout + done.stderr


for _turn in range(3):
    answer = client.chat.completions.create(
        model="edge", messages=messages, tools=[{"type": "function", "function": bash}], max_tokens=200
    )
    message = answer.choices[0].message
    messages.append(message)
    for call in message.tool_calls or []:
        output = run(call.function.arguments)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": output})
    if not message.tool_calls:
        break

with client.chat.completions.stream(
    model="edge",
    messages=[{"role": "user", "content": "Show notes.txt."}],
    tools=[{"type": "function", "function": bash}],
    tool_choice="required",
    max_tokens=200,
) as stream:
    for event in stream:
        if event.type == "tool_calls.function.arguments.done":
            run(event.arguments)
    print("streamed:", stream.get_final_completion().choices[0].finish_reason)

response = client.responses.create(
    model="edge",
    input="Show the working folder.",
    tools=[{"type": "function", **bash}],
    tool_choice="required",
    max_output_tokens=200,
)
calls = [item for item in response.output if item.type == "function_call"]
response = client.responses.create(
    model="edge",
    input=[
        {"role": "user", "content": "Show the working folder."},
        *response.output,
        *(
            {"type": "function_call_output", "call_id": call.call_id, "output": run(call.arguments)}
            for call in calls
        ),
    ],
    max_output_tokens=100,
    store=False,
)
print("responses:", response.status, len(response.output_text))
with client.responses.stream(model="edge", input="Say hello.", max_output_tokens=50) as events:
    for _event in events:
        pass
    print("responses, streamed:", events.get_final_response().status)
