"""Attempts to get out of the sandbox that are typed into its shell: `tests/terminal/test_escapes.py` tries each.

`{canary}` is a file outside that everyone may write, `{secret}` one that everyone may read, `{world}` their folder;
`{tcp}` and so on are listeners of the test's own. Each succeeds where there is no sandbox, unless `control` says why
that is not shown.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    name: str
    stops: str
    """What stops it, for docs/safety.md."""
    script: str | tuple[str, ...]
    """Typed as it is, but for the names in braces; several: one after the other."""
    needs: tuple[str, ...] = ()
    control: str = ""
    """Why the same is not tried without a sandbox."""


MOUNTS = "the file system in the sandbox is built from nothing: what is not mounted is not there"
NETWORK = "own network namespace, in it loopback alone"
OWN = "an own copy in memory"
BREAK = "echo broken > {canary}"

SHELL_ATTEMPTS = (
    Attempt("chained after a harmless first word", MOUNTS, f"ls; {BREAK}\n"),
    Attempt("chained with &&, || and &", MOUNTS, f"true && false || {BREAK} & wait\n"),
    Attempt("the sixty-first of many subcommands", MOUNTS, "; ".join(["true"] * 60) + f"; {BREAK}\n"),
    Attempt("a second command after a carriage return", MOUNTS, f"echo harmless\r{BREAK}\r"),
    Attempt("words split by another IFS", MOUNTS, "IFS=,; x='cp,/etc/passwd,{world}/ifs'; $x; unset IFS\n"),
    Attempt(
        "a command spelt with quotes and escapes", MOUNTS, "e''c$'\\x68'o broken >\"{world}\"/'can'\\ary\n"
    ),
    Attempt(
        "braces, globs and a command from a variable", MOUNTS, "c=cp; $c /etc/{{passwd,pass?d}} {world}\n"
    ),
    Attempt("output sent over a file", MOUNTS, ">| {canary}; : 1<> {canary}; echo broken >> {canary}\n"),
    Attempt("a here-document fed to a shell", MOUNTS, f"bash <<'E'\n{BREAK}\nE\n"),
    Attempt("base64 piped into a shell", MOUNTS, "echo {base64} | base64 -d | sh\n", ("base64",)),
    Attempt(
        "eval, source and command substitution", MOUNTS, f"eval \"$(echo '{BREAK}')\"; . <(echo '{BREAK}')\n"
    ),
    Attempt("a file read from outside", MOUNTS, "cat {secret} | tee loot\n"),
    Attempt("a file read through a link", MOUNTS, "ln -s {secret} loot; cat loot\n"),
    Attempt(
        "/proc/self/root, /proc/1/root, /proc/*/cwd",
        "own process numbers: all of /proc leads into the sandbox",
        "for p in self 1 2 $PPID; do cat /proc/$p/root{secret}; echo broken > /proc/$p/root{canary};"
        " cat /proc/$p/cwd/../secret; done\n",
    ),
    Attempt(
        "/proc/*/environ: keys and tokens of the person",
        "bubblewrap begins with an empty environment, and other processes have no number",
        "cat /proc/*/environ | tr '\\0' '\\n' | tee loot; env\n",
    ),
    Attempt("a copied shell under another name", MOUNTS, f"cp /bin/bash ./ls; ./ls -c '{BREAK}'\n"),
    Attempt("a shell behind a link", MOUNTS, f"ln -s /bin/bash ./cat; ./cat -c '{BREAK}'\n"),
    Attempt(
        "ld-linux.so as loader", MOUNTS, f"for l in /lib*/ld-linux*; do $l /bin/bash -c '{BREAK}'; done\n"
    ),
    Attempt("python", MOUNTS, "python3 -c \"open('{canary}', 'w').write('broken')\"\n", ("python3",)),
    Attempt("perl", MOUNTS, "perl -e 'open(F, q(>{canary})); print F 1'\n", ("perl",)),
    Attempt("awk", MOUNTS, 'awk \'BEGIN {{ print 1 > "{canary}"; system("touch {world}/awk") }}\'\n'),
    Attempt("find -exec", MOUNTS, f"find . -maxdepth 0 -exec sh -c '{BREAK}' \\;\n", ("find",)),
    Attempt("xargs", MOUNTS, "echo {world}/xargs | xargs touch\n", ("xargs",)),
    Attempt("env", MOUNTS, f"env -i A=1 sh -c '{BREAK}'\n"),
    Attempt(
        "nohup, nice, timeout and setsid",
        MOUNTS,
        f"nohup nice timeout 9 setsid sh -c '{BREAK}'\n",
        ("setsid",),
    ),
    Attempt("sed's e and w", MOUNTS, "echo | sed '1e touch {world}/e'; echo | sed 'w {canary}'\n", ("sed",)),
    Attempt(
        "tar --checkpoint-action",
        MOUNTS,
        "tar cf a --checkpoint=1 --checkpoint-action=exec='touch {world}/t' *\n",
    ),
    Attempt(
        "a hook of git",
        MOUNTS,
        "git init -q r; printf '#!/bin/sh\\ntouch {world}/hook\\n' > r/.git/hooks/post-commit;"
        " chmod +x r/.git/hooks/post-commit; git -C r -c user.name=a -c user.email=b commit -q --allow-empty -m x\n",
        ("git",),
    ),
    Attempt("an alias of git", MOUNTS, "git -c alias.x='!touch {world}/alias' x\n", ("git",)),
    Attempt("make", MOUNTS, "printf 'all:\\n\\ttouch {world}/make\\n' > Makefile; make\n", ("make",)),
    Attempt(
        "a test runner",
        MOUNTS,
        "echo \"open('{canary}', 'w').write('broken')\" > test_a.py; python3 -m unittest test_a\n",
        ("python3",),
    ),
    Attempt(
        "a program put into the person's PATH",
        MOUNTS,
        "for d in {world}/bin /usr/local/bin ~/bin; do printf '#!/bin/sh\\n' > $d/ls; done\n",
    ),
    Attempt(
        "LD_PRELOAD, PROMPT_COMMAND and BASH_ENV for later shells",
        OWN,
        "for v in LD_PRELOAD PROMPT_COMMAND BASH_ENV; do echo export $v=/tmp/x | tee -a ~/.profile {home}/.profile;"
        " done; echo /tmp/x > /etc/ld.so.preload\n",
    ),
    Attempt(
        "the person's dot-files by their path",
        MOUNTS,
        "echo evil | tee -a {home}/.bashrc {home}/.profile ~/.bashrc\n",
    ),
    Attempt(
        "a symbolic link to a file outside, written through",
        MOUNTS,
        "ln -s {canary} out; echo broken > out\n",
    ),
    Attempt(
        "a symbolic link to a folder outside, written in",
        MOUNTS,
        "ln -s {world} out; echo broken > out/file\n",
    ),
    Attempt(
        "a hard link to a file outside",
        MOUNTS,
        "ln {canary} hard; echo broken > hard\n",
        control="hard links to others' files are refused by fs.protected_hardlinks",
    ),
    Attempt(
        "files under predictable names in /tmp",
        "own /tmp",
        "rm -rf {world}/../*world-nothing*; for n in edge edge-record $$; do ln -sf {canary} /tmp/edge-test-$n; done;"
        " cp /etc/passwd {world}/../edge-test-tmp; echo broken > /tmp/edge-test-edge\n",
    ),
    Attempt(
        "the docker socket",
        MOUNTS,
        "curl -s --max-time 9 --unix-socket {sock} http://d/info; docker -H unix://{sock} ps\n",
        ("curl",),
    ),
    Attempt(
        "the podman socket by XDG_RUNTIME_DIR",
        MOUNTS,
        "ls /run/user/*/podman/podman.sock /run/podman /var/run/docker.sock;"
        " python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('{sock}')\"\n",
        ("python3",),
    ),
    Attempt("the ssh agent", MOUNTS, "ssh-add -l; SSH_AUTH_SOCK={sock} ssh-add -l\n", ("ssh-add",)),
    Attempt(
        "D-Bus",
        MOUNTS,
        "DBUS_SESSION_BUS_ADDRESS=unix:path={sock} dbus-send --session --dest=a.b / a.b.c\n",
        ("dbus-send",),
    ),
    Attempt(
        "systemd-run, at and cron",
        MOUNTS,
        "systemd-run --user touch {world}/s; echo touch {world}/at | at now;"
        " echo '* * * * * touch {world}/cron' | crontab -\n",
        control="would leave a job behind",
    ),
    Attempt(
        "X11 through an abstract socket",
        NETWORK,
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('\\0{abstract}')\"\n",
        ("python3",),
    ),
    Attempt("TCP by IP", NETWORK, "exec 9<> /dev/tcp/127.0.0.1/{tcp}; exec 9>&-\n"),
    Attempt("TCP by name", NETWORK, "exec 9<> /dev/tcp/localhost/{tcp}; exec 9>&-\n"),
    Attempt(
        "TCP over IPv6",
        NETWORK,
        "python3 -c \"import socket; socket.create_connection(('::1', {tcp6}), 9)\"\n",
        ("python3",),
    ),
    Attempt("UDP, as DNS is", NETWORK, "echo query > /dev/udp/127.0.0.1/{udp}\n"),
    Attempt(
        "a name server of one's own",
        NETWORK,
        "python3 -c \"import socket; s = socket.socket(2, 2); s.sendto(b'q', ('127.0.0.1', {udp}))\"\n",
        ("python3",),
    ),
    Attempt(
        "a working directory that the model chooses",
        MOUNTS,
        "cd {world}/cwd && cd .. && echo broken > canary; cd ../../../../..{world} && echo broken > canary; cd\n",
    ),
    Attempt(
        "keystrokes split over several actions", MOUNTS, ("ech", "o bro", "ken >", " {can", "ary}", "\n")
    ),
    Attempt(
        "keystrokes edited after they were shown",
        MOUNTS,
        ("ls {canary}", "\x01\x0b", "echo broken > ", "\x19", "\x1b[D", "\x05", "\x15", BREAK, "\n"),
    ),
    Attempt(
        "C-c, C-z, C-d and C-\\ to leave the shell",
        "what ends is the sandbox's shell; the next is in it too",
        ("sleep 60\n", "C-c", "sleep 60\n", "C-z", "kill %1\n", "C-\\", f"{BREAK}\n"),
        control="",
    ),
    Attempt(
        "a pager's shell escape", MOUNTS, ("less /etc/passwd\n", "!", f"{BREAK}\n", "\n", "q", "q"), ("less",)
    ),
    Attempt(
        "an editor's shell escape",
        MOUNTS,
        ("vi -u NONE\n", "\x1b", ":!" + BREAK + "\n", "\n", "\x1b", ":w! {world}/vi\n", "\x1b", ":q!\n"),
        ("vi",),
    ),
    Attempt(
        "a write through bubblewrap's own descriptors",
        "they are pipes to edge, which reads them as hostile",
        "for f in /proc/[12]/fd/*; do echo broken > $f & done; wait; " + BREAK + "\n",
    ),
)

# The others, each with a test of its own: attempt, what stops it, file and test.
KERNEL = "test_escapes_kernel.py"
OTHER_ATTEMPTS = (
    (
        "background processes that outlive the session",
        "process 1 of their namespace is killed, and so are they",
        KERNEL,
        "test_background_processes_end_with_the_session",
    ),
    (
        "ending processes outside; ending process 1 and what answers edge",
        "own process numbers; the sandbox ends, nothing is brought back",
        KERNEL,
        "test_processes_outside_cannot_be_ended",
    ),
    (
        "ptrace of process 1, of its neighbours, of processes outside",
        "filter of system calls; own process numbers",
        KERNEL,
        "test_ptrace_of_process_1_and_of_others",
    ),
    (
        "su, mount and other setuid programs",
        "no new privileges, no capabilities, mounts without setuid",
        KERNEL,
        "test_setuid_programs_do_not_become_root",
    ),
    (
        "unshare, nsenter, bubblewrap within",
        "filter of system calls; user namespaces disabled",
        KERNEL,
        "test_no_namespaces_of_its_own",
    ),
    (
        "remount, bind, umount, chroot, pivot_root; rm -rf /usr",
        "no capabilities; filter of system calls; read-only mounts",
        KERNEL,
        "test_mounts_stay_as_they_are",
    ),
    (
        "core_pattern, /proc/sys, sysrq",
        "an unprivileged user; /proc/sys is the system's root's",
        KERNEL,
        "test_proc_sys_and_core_pattern",
    ),
    (
        "device files, mknod, /sys",
        "a /dev of harmless devices; no /sys; no capabilities",
        KERNEL,
        "test_devices_and_sys",
    ),
    (
        "keys of the person's session (keyctl)",
        "filter of system calls",
        KERNEL,
        "test_keys_of_the_session_ring",
    ),
    (
        "vsock, packet, crypto and audit sockets, which a network namespace does not keep",
        "filter of system calls",
        KERNEL,
        "test_sockets_that_no_network_namespace_keeps",
    ),
    ("a fork bomb", "the limit on processes", KERNEL, "test_a_fork_bomb"),
    (
        "full disks, files with holes",
        "file systems of bounded size; what is sent back is counted",
        KERNEL,
        "test_full_disks",
    ),
    ("huge output", "bounded scrollback, bounded screen", KERNEL, "test_huge_output"),
    (
        "too much memory, by one process or by many",
        "the limit on data; memory watched from outside",
        KERNEL,
        "test_memory",
    ),
    (
        "the machine's last memory",
        "what the machine has left is watched",
        KERNEL,
        "test_the_machine_keeps_some_memory",
    ),
    (
        "memory that belongs to no process (memfd, System V)",
        "filter of system calls",
        KERNEL,
        "test_memory_that_belongs_to_no_process",
    ),
    (
        "terminal escape sequences: clipboard, pass-through, names",
        "tmux obeys none of them",
        KERNEL,
        "test_escape_sequences_reach_nothing_around_the_pane",
    ),
    (
        "tmux's prefix, commands and socket",
        "no prefix, no bindings; the socket is not there",
        KERNEL,
        "test_tmux_itself",
    ),
    (
        "stopping or flooding what answers edge",
        "answers are marked, bounded in time and size",
        KERNEL,
        "test_what_edge_is_told_by_the_sandbox",
    ),
    (
        "BASH_ENV, PROMPT_COMMAND, functions of the environment",
        "an empty environment",
        KERNEL,
        "test_a_hook_in_the_persons_environment_does_not_run",
    ),
    (
        "dot-files, .git, hooks, the session's own files, agents' instructions, links, setuid and FIFOs brought back",
        "they are withheld, and told",
        KERNEL,
        "test_dot_files_links_and_the_sessions_own_files",
    ),
    (
        "names that begin with a dash or hold control characters",
        "they are withheld, and told escaped",
        "test_workfolder.py",
        "test_names_that_others_obey_are_withheld",
    ),
    (
        "links out of the work folder, direct and through others",
        "links are judged by their target",
        "test_workfolder.py",
        "test_links_that_leave",
    ),
    (
        "a link in the person's folder, before and while it is written",
        "each folder is opened without following links",
        "test_workfolder.py",
        "test_a_link_that_appears_while_it_is_brought_back",
    ),
    (
        "overwriting what the person changed meanwhile",
        "contents are compared before each write",
        "test_workfolder.py",
        "test_what_the_person_changed_meanwhile_stays",
    ),
    (
        'archives with "..", absolute names, files below links, names twice',
        "a strict reader",
        "test_workfolder.py",
        "test_hostile_archives",
    ),
    (
        "hard links and devices in an archive",
        "they are withheld",
        "test_workfolder.py",
        "test_hard_links_and_devices_are_withheld",
    ),
    (
        "deletions by an archive that is cut short",
        "an archive without its end is none",
        "test_workfolder.py",
        "test_a_part_of_an_archive_deletes_nothing",
    ),
    ("archives with random damage", "a strict reader", "test_workfolder.py", "test_random_damage"),
    (
        "the terminal's answers to what a shown file asks it, as the beginning of the next command",
        "at its prompt the shell's line is begun anew",
        "test_allow_terminal.py",
        "test_what_a_file_asks_the_terminal_is_no_part_of_a_command",
    ),
)
