"""The command line: options in, one call, print. Only this folder prints.

main      the `edge` command: its subcommands, errors and exit codes
common    notes, tables and lines of progress
options   options that commands share
defaults  the model that a command takes if none is named
models    edge convert, imatrix, inspect, models, doctor
run       edge run
chat      edge chat
agent     edge agent, replay
serve     edge serve
eval      edge eval
results   edge score, compare
measure   edge measure
sweep     edge sweep
report    edge report
bundle    edge bundle, unbundle
"""
