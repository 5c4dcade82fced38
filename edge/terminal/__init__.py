"""Where keystrokes go: tmux, the sandbox, the work folder. Knows no model.

tmux        a real terminal in its own tmux server
sandbox     a shell without network, on a copy of the work folder
check       what holds in the sandbox, checked from outside
seccomp     the filter of system calls
archive     strict reader for untrusted tar archives
workfolder  the work folder packed, compared and brought back
"""
