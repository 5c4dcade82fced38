"""The machine: files, locks, child processes, folders, signals, text. Knows nothing of models.

files     complete files only; reads and writes at an offset
locks     the lock of a file or folder
child     runs a module of edge as a child process
folders   temporary folders that are removed
places    checks whether an output can be written; text and JSON files
outputs   an output is never an input, nor the output of another run
paths     where shipped models, caches and sessions are
store     the folder of the user's models, and ./models
config    the user's settings: a file and environment variables
signals   signals held back where their exception would be lost
typed_json  JSON values checked against a TypedDict
hashes    SHA-256 of files and texts
text      other people's text made safe to show; sizes
tables    Markdown tables
progress  progress bars and lines
machine   cores, memory and disk
"""
