"""The machine: files, locks, child processes, folders, signals, text. Knows nothing of models.

files     complete files only; reads and writes at an offset
locks     the lock of a file or folder
child     runs a module of edge as a child process
confined  runs a module of edge on an untrusted file, in a sandbox where one can be made
seccomp   the sandboxes' filter of system calls
folders   temporary folders that are removed
places    checks whether an output can be written; text and JSON files
outputs   an output is never an input, nor the output of another run
changes   how two runs differ, in words
paths     where shipped models, caches and sessions are
store     the folder of the user's models, and ./models
config    the user's settings: a file and environment variables
tuned     what edge tune measured, in a file beside the settings
signals   signals held back where their exception would be lost, or passed on to C code
streams   standard streams in any encoding
typed_json  JSON values checked against a TypedDict
keys      the user's secret key, for seals
hashes    SHA-256 of files and texts
text      other people's text made safe to show; sizes
tables    tables in Markdown and for a terminal
progress  progress bars and lines
machine   cores, memory and disk
hosts     host names and addresses of this machine
"""
