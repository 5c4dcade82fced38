"""The machine: files, locks, child processes, folders, signals, text. Knows nothing of models.

files     a file that gets its name when it is whole
locks     the file lock
child     runs a module of edge as a child process
folders   temporary folders that do not stay
places    whether an output can be written; text and JSON files
paths     where shipped models, caches and sessions are
signals   signals held back where their exception would be lost
typed_json  JSON values checked against a TypedDict
hashes    SHA-256 of files and texts
text      other people's text made safe to show; sizes
tables    Markdown tables
progress  progress bars and lines
machine   cores, memory and disk
"""
