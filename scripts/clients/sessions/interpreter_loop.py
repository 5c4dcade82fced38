"""Open Interpreter: code as a tool call, and code in a text."""

import os

from interpreter import interpreter

interpreter.offline = True
interpreter.auto_run = True
interpreter.disable_telemetry = True
interpreter.llm.api_key = "none"
interpreter.llm.api_base = "http://127.0.0.1:8080/v1"
interpreter.llm.context_window = 8192
interpreter.llm.max_tokens = 200
interpreter.loop = False
for name, tools in (("openai/edge", True), ("openai/" + os.environ["TEXT_MODEL"], False)):
    interpreter.messages = []
    interpreter.llm.model = name
    interpreter.llm.supports_functions = tools
    for task in ("List the files here.", "Show notes.txt."):
        for message in interpreter.chat(task, display=False):
            print(message["role"], message["type"], repr(message["content"])[:200])
