"""An OpenAI-compatible HTTP server. By default its chat answers are valid actions.

server    starts and stops the server
app       endpoints, streams, errors, metrics
names     the names of the served models
request   a client's request, checked field by field
messages  a client's messages in the form that chat templates read
response  responses in OpenAI's form
model     the model in its own thread, for many clients
"""
