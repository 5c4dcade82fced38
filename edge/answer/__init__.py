"""From logits to a valid answer.

action      an action as text: parse it, follow it, close it at any point
style       the white space of an answer
constraint  the grammar on token ids
sampling    the next token from the logits
answering   the options of an answer
writer      writes one answer: thought, action, valid end
text        free text, with stops
scores      log probabilities of tokens
endings     short ways to a complete text
calls       a call of a tool, and the pieces of a stream
tools       answers that call tools: text, calls, or both
call_formats  the forms in which models write calls
call_schema  the schema of a tool's arguments, made ready
call_grammar  the grammar of calls in a form
call_reader  reads calls while they are written
number_grammar  numbers with one text each
guided      answers under any JSON schema or grammar
expression  regular expressions as trees
look_ahead  expressions with look-around as equal ones, or as several, without it
json_pattern  a spelling of an expression that llguidance keeps inside of JSON strings
derived     the shortest end under several expressions
pattern     the shortest end of a text under a regular expression
client_schema  a client's JSON schema in the form that llguidance takes
one_of      `oneOf` as `anyOf`, where no value fits two of its schemas
schema      the JSON schema of an action
"""
