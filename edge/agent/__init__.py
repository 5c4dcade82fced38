"""The loop between a model and a terminal, with gates that decide what may be typed.

loop      asks the model, types what the gates allow, reads the screen
wording   the words that the model sees
gate      what must agree before keystrokes are typed
shell     keystrokes read as bash: plain commands, or why not
allow     the allowlist: a TOML file of commands that may be typed
risks     marks what deserves a second look
review    a person decides on each action
record    a session on disk, as replay rows
show      an action as a person sees it
playback  a recorded session, shown again
"""
