"""The command line: options in, one call, print. Only this folder prints.

main      the `edge` command: its subcommands, errors and exit codes
command   what every command does with its options
common    notes, reports, tables, lines of progress, standard input, broken packages
options   options that commands share
defaults  the model that a command takes if none is named
models    edge convert, imatrix, inspect, models, doctor
run       edge run
agent     edge agent, replay
serve     edge serve
eval      edge eval
results   edge score, compare
measure   edge measure
sweep     edge sweep
report    edge report
bundle    edge bundle, unbundle
"""
