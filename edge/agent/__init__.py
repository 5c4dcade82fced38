"""The agent: a loop between a model and a terminal, with gates that decide what edge types.

session     one session from its options to its end: resume, sandbox, loop, bring back
options     the options of a session, and which of them do not fit together
source      which model a session uses: a file here, or one behind a server
answerer    who answers in the loop; a model in this process
remote      a model behind a server, as an answerer
bring_back  the changes of a sandboxed session, brought into the work folder and undone
listing     what a session changed, as a person reads it: the list and the diff
loop        asks the model, asks the gates, shows the screen
workplace   the terminal and its sandbox, where allowed keystrokes are typed
wording     the words that the model sees
proposal    an action of the model before a decision
gate        what must agree before edge types
shell       keystrokes read as bash: plain commands, or the reason for a refusal
allow       the allowlist: a TOML file of commands that may be typed
rules       one rule of it: words by their places, options, paths in the folder
risks       marks for keystrokes that need a second look
dangers     what programs can do, by their names and words
review      a person decides on each action
record      the session record on disk, as replay rows
seal        seals of records and archives, so that no sandboxed session can make one
kept        the files beside a record
show        an action as a person sees it
playback    shows a recorded session again
"""
