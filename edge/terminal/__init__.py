"""Where keystrokes go: tmux, the sandbox, the work folder. Knows no model.

tmux        a real terminal in its own tmux server
shell       its command line, prompts and environment
sandbox     a shell without network, on a copy of the work folder
channel     reads what the sandbox answers
check       checks from outside that the sandbox is in force
seccomp     the filter of system calls
archive     strict reader for untrusted tar archives
packed      the archive of a work folder
workfolder  compares the work folder with an archive and brings changes back
opened      opens files and folders without following links
"""
