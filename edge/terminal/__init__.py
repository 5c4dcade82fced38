"""Where keystrokes go: tmux, the sandbox, the work folder. Knows no model.

tmux        a real terminal in its own tmux server
server      the tmux server
processes   the processes of a terminal
shell       its command line, prompts and environment
typed       the bytes that edge types for a line at its prompt
sandbox     a shell without network, on a copy of the work folder
bubblewrap  which files it has, and where
supervisor  the scripts that start its programs and answer edge from inside
channel     reads what the sandbox answers
check       checks from outside that the sandbox is in force
needs       what the sandbox needs of this system
memory      how much memory the sandbox uses
cgroup      the sandbox's cgroup, where one can be made
archive     strict reader for untrusted tar archives
packed      the archive of a work folder
saved       the archives with which a sandbox begins, or goes on
sealed      archives that only edge can have written
workfolder  compares the work folder with an archive and brings changes back
obeyed      names of files on which programs and agents act
repository  what makes a folder a git repository
commits     commits made in the sandbox, fetched into the user's repository
links       where links of a work folder lead
place       one path of the work folder: read, written or deleted
undo        the archive that undoes what was brought back
opened      opens files and folders without following links
"""
