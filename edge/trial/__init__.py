"""Trials: how many tasks a model solves in a real shell, in the sandbox of `edge agent`.

dockerfile  reads a Dockerfile as far as a trial can obey it
network     what a shell script loads from a network
tasks       reads task folders in Harbor's format
suite       edge's own suite of tasks
root        a file system that the user made from an image
made        the files that a trial begins with
place       the sandbox of a trial: the files of a task in it, its tests in a fresh one
lacking     what the tests need and this system does not have
workers     who works on a task: a model, the task's own scripts, nobody
attempt     one trial, from the sandbox to the reward
engines     the models of a run: files on this machine, or one behind a server
outputs     what is written is never an input, and never a part of a task
run         all trials of a model: order, resume, result
export      the solved trials as replay rows
"""
