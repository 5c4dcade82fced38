"""An OpenAI-compatible HTTP server. By default its chat answers are valid actions.

server    starts and stops the server
app       which path has which endpoint; models, health, metrics
guard     who may send requests; the line of each request
endpoint  takes a place, reads the body, hands the request in
prepare   from a checked request to the writer of its answer
stream    answers on their way: whole, or as server-sent events
failures  errors in OpenAI's form
state     what the endpoints share: model, limits, metrics
names     the names of the served models
request   a client's request, checked field by field
messages  a client's messages in the form that chat templates read
response  responses in OpenAI's form
model     the model in its own thread, for many clients
"""
