"""The command line: options in, one call, print. Only this folder prints.

main      the `edge` command: its subcommands, errors and exit codes; edge prompt
command   what every command does with its options
common    notes, reports, tables, lines of progress, standard input, broken packages
options   options that commands share
usage     wrong usage in edge's words, with similar names
defaults  the model of a command: the named or the default one
config    edge config; settings as defaults of options
store     edge models, the models in the store
pull      edge pull; the question before a large download
models    edge convert, inspect, doctor; not edge models, which is in store
run       edge run
chat      edge chat
keyboard  the keyboard of edge chat: Ctrl-C, line editing
agent     edge agent, replay
allow     edge allow: try an allowlist, print edge's own
serve     edge serve
eval      edge eval
trial     edge trial
results   edge score, compare
rank      edge rank
join      edge join
formats   edge schema, rows: the formats of files
imatrix   edge imatrix
measure   edge measure
sweep     edge sweep
tune      edge tune
report    edge report
bundle    edge bundle, unbundle
"""
