"""The Anthropic package: a loop of tool calls, whole and streamed."""

import subprocess

from anthropic import Anthropic

client = Anthropic(base_url="http://127.0.0.1:8080", api_key="none")
command = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
bash = {"name": "bash", "description": "Run a shell command.", "input_schema": command}
for streamed in (False, True):
    messages: list = [{"role": "user", "content": "List the files here."}]
    for _turn in range(3):
        request = {"model": "edge", "max_tokens": 200, "system": "You run commands.", "messages": messages}
        if streamed:
            with client.messages.stream(**request, tools=[bash]) as stream:
                message = stream.get_final_message()
        else:
            message = client.messages.create(**request, tools=[bash])
        calls = [block for block in message.content if block.type == "tool_use"]
        print("ended:", message.stop_reason)
        if not calls:
            break
        results = []
        for call in calls:
            print("tool:", call.input["command"])
            line = ["bash", "-c", call.input["command"]]
            done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=False)
            output = done.stdout + done.stderr
            results.append({"type": "tool_result", "tool_use_id": call.id, "content": output})
        messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
