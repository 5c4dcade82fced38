"""From logits to a valid answer.

action      an action as text: parse, follow, close at any point
style       the white space of an answer
constraint  the grammar on token ids
sampling    the next token from the logits
answering   how an answer is written, as one value
writer      writes one answer: thought, action, valid end
guided      answers under any JSON schema or grammar
schema      the JSON schema of an action
"""
