"""An OpenAI-compatible HTTP server. By default its chat answers are valid actions.

server    starts and stops the server
app       which path has which endpoint; models, health, metrics
guard     who may send requests; the line of each request
page      the page at `/`, and its data
endpoint  takes a place, reads the body, hands the request in
dialects  the languages of the endpoints: how each reads requests and writes answers
request   a chat or a completion in OpenAI's form, checked field by field
forms     the form of an answer that a request asks for, and unknown fields
tools     the tools of a request, and how much it may think
tool_prompt  how the model's chat template shows tools and calls
chat_writer  the writer of text and calls of tools
messages  a client's messages in the form that chat templates read
turns     the turns of a conversation, from the items of other APIs
responses_read   requests of OpenAI's Responses API as chats
responses_write  its responses and events
anthropic_read   requests of Anthropic's Messages API as chats
anthropic_write  its messages and events
response  chats and completions in OpenAI's form
tokens    what the tokenizer alone answers
prepare   from a checked request to the writer of its answer
stream    answers on their way: whole, or as server-sent events
failures  errors in OpenAI's form
names     the names of the served models
state     what the endpoints share: model, limits, metrics
model     the model in its own thread, for many clients
"""
