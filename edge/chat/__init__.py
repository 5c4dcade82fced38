"""A conversation with a model in free text or in actions: what `edge chat` does between its input and its output.

kind          whether a model answers with actions or with text
settings      what the person sets: sampling, budgets
conversation  messages and answers; keeps the conversation within the context
commands      the lines that begin with a slash
entries       messages from lines: blocks between three double quotes
history       the lines that the person typed before
stored        a conversation in a file
layout        text and JSON of a model, safe for a terminal
"""
