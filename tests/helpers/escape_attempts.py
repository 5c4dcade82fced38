"""Attempts to get out of the sandbox, for tests/terminal/test_escapes.py and the table in docs/safety.md.

The test types each `script` into the shell of the sandbox. `{canary}` is a file outside that everyone may
write. `{secret}` is a file outside that everyone may read. `{world}` is their folder. `{tcp}` and similar
names are the ports of the test's own listeners. Each attempt succeeds without a sandbox, unless `control`
says why the test skips that part.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    name: str
    stops: str
    """What stops the attempt, for docs/safety.md."""
    script: str | tuple[str, ...]
    """Keystrokes. The test fills in the names in braces, and types the parts of a tuple in turn."""
    needs: tuple[str, ...] = ()
    control: str = ""
    """Why the test does not try the same without a sandbox."""


MOUNTS = "the sandbox's file system starts empty: only mounted paths exist"
NETWORK = "separate network namespace with only a loopback interface"
OWN = "the sandbox has its own home folder in memory"
BREAK = "echo broken > {canary}"

SHELL_ATTEMPTS = (
    Attempt("a command after a harmless first command", MOUNTS, f"ls; {BREAK}\n"),
    Attempt("commands chained with &&, || and &", MOUNTS, f"true && false || {BREAK} & wait\n"),
    Attempt("the 61st command on one line", MOUNTS, "; ".join(["true"] * 60) + f"; {BREAK}\n"),
    Attempt("a second command after a carriage return", MOUNTS, f"echo harmless\r{BREAK}\r"),
    Attempt("words split by a changed IFS", MOUNTS, "IFS=,; x='cp,/etc/passwd,{world}/ifs'; $x; unset IFS\n"),
    Attempt(
        "a command spelled with quotes and escapes", MOUNTS, "e''c$'\\x68'o broken >\"{world}\"/'can'\\ary\n"
    ),
    Attempt(
        "braces, globs and a command from a variable", MOUNTS, "c=cp; $c /etc/{{passwd,pass?d}} {world}\n"
    ),
    Attempt(
        "output redirected over a file", MOUNTS, ">| {canary}; : 1<> {canary}; echo broken >> {canary}\n"
    ),
    Attempt("a here-document sent to a shell", MOUNTS, f"bash <<'E'\n{BREAK}\nE\n"),
    Attempt("base64 piped into a shell", MOUNTS, "echo {base64} | base64 -d | sh\n", ("base64",)),
    Attempt(
        "eval, source and command substitution", MOUNTS, f"eval \"$(echo '{BREAK}')\"; . <(echo '{BREAK}')\n"
    ),
    Attempt("reading a file outside", MOUNTS, "cat {secret} | tee loot\n"),
    Attempt("reading a file outside through a symbolic link", MOUNTS, "ln -s {secret} loot; cat loot\n"),
    Attempt(
        "/proc/self/root, /proc/1/root, /proc/*/cwd",
        "separate PID namespace: /proc shows only the sandbox",
        "for p in self 1 2 $PPID; do cat /proc/$p/root{secret}; echo broken > /proc/$p/root{canary};"
        " cat /proc/$p/cwd/../secret; done\n",
    ),
    Attempt(
        "/proc/*/environ: keys and tokens of the user",
        "bubblewrap starts with an empty environment, and processes outside are not visible",
        "cat /proc/*/environ | tr '\\0' '\\n' | tee loot; env\n",
    ),
    Attempt("a copy of a shell under another name", MOUNTS, f"cp /bin/bash ./ls; ./ls -c '{BREAK}'\n"),
    Attempt("a shell behind a symbolic link", MOUNTS, f"ln -s /bin/bash ./cat; ./cat -c '{BREAK}'\n"),
    Attempt(
        "ld-linux.so as the loader", MOUNTS, f"for l in /lib*/ld-linux*; do $l /bin/bash -c '{BREAK}'; done\n"
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
    Attempt(
        "the e and w commands of sed",
        MOUNTS,
        "echo | sed '1e touch {world}/e'; echo | sed 'w {canary}'\n",
        ("sed",),
    ),
    Attempt(
        "tar --checkpoint-action",
        MOUNTS,
        "tar cf a --checkpoint=1 --checkpoint-action=exec='touch {world}/t' *\n",
    ),
    Attempt(
        "a git hook",
        MOUNTS,
        "git init -q r; printf '#!/bin/sh\\ntouch {world}/hook\\n' > r/.git/hooks/post-commit;"
        " chmod +x r/.git/hooks/post-commit; git -C r -c user.name=a -c user.email=b commit -q --allow-empty -m x\n",
        ("git",),
    ),
    Attempt("a git alias", MOUNTS, "git -c alias.x='!touch {world}/alias' x\n", ("git",)),
    Attempt("make", MOUNTS, "printf 'all:\\n\\ttouch {world}/make\\n' > Makefile; make\n", ("make",)),
    Attempt(
        "a test runner",
        MOUNTS,
        "echo \"open('{canary}', 'w').write('broken')\" > test_a.py; python3 -m unittest test_a\n",
        ("python3",),
    ),
    Attempt(
        "a program added to the user's PATH",
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
        "writing to the user's dot-files by path",
        MOUNTS,
        "echo evil | tee -a {home}/.bashrc {home}/.profile ~/.bashrc\n",
    ),
    Attempt(
        "writing through a symbolic link to a file outside",
        MOUNTS,
        "ln -s {canary} out; echo broken > out\n",
    ),
    Attempt(
        "writing through a symbolic link to a folder outside",
        MOUNTS,
        "ln -s {world} out; echo broken > out/file\n",
    ),
    Attempt(
        "a hard link to a file outside",
        MOUNTS,
        "ln {canary} hard; echo broken > hard\n",
        control="the kernel refuses hard links to other users' files (fs.protected_hardlinks)",
    ),
    Attempt(
        "files with predictable names in /tmp",
        "separate /tmp",
        "rm -rf {world}/../*world-nothing*; for n in edge edge-record $$; do ln -sf {canary} /tmp/edge-test-$n; done;"
        " cp /etc/passwd {world}/../edge-test-tmp; echo broken > /tmp/edge-test-edge\n",
    ),
    Attempt(
        "the Docker socket",
        MOUNTS,
        "curl -s --max-time 9 --unix-socket {sock} http://d/info; docker -H unix://{sock} ps\n",
        ("curl",),
    ),
    Attempt(
        "the Podman socket in XDG_RUNTIME_DIR",
        MOUNTS,
        "ls /run/user/*/podman/podman.sock /run/podman /var/run/docker.sock;"
        " python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('{sock}')\"\n",
        ("python3",),
    ),
    Attempt("the SSH agent", MOUNTS, "ssh-add -l; SSH_AUTH_SOCK={sock} ssh-add -l\n", ("ssh-add",)),
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
        control="the attempt would leave a job on the machine",
    ),
    Attempt(
        "X11 through an abstract socket",
        NETWORK,
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('\\0{abstract}')\"\n",
        ("python3",),
    ),
    Attempt("TCP by IP address", NETWORK, "exec 9<> /dev/tcp/127.0.0.1/{tcp}; exec 9>&-\n"),
    Attempt("TCP by host name", NETWORK, "exec 9<> /dev/tcp/localhost/{tcp}; exec 9>&-\n"),
    Attempt(
        "TCP over IPv6",
        NETWORK,
        "python3 -c \"import socket; socket.create_connection(('::1', {tcp6}), 9)\"\n",
        ("python3",),
    ),
    Attempt("UDP, as DNS uses it", NETWORK, "echo query > /dev/udp/127.0.0.1/{udp}\n"),
    Attempt(
        "a custom name server",
        NETWORK,
        "python3 -c \"import socket; s = socket.socket(2, 2); s.sendto(b'q', ('127.0.0.1', {udp}))\"\n",
        ("python3",),
    ),
    Attempt(
        "a working directory outside, chosen by the model",
        MOUNTS,
        "cd {world}/cwd && cd .. && echo broken > canary; cd ../../../../..{world} && echo broken > canary; cd\n",
    ),
    Attempt(
        "keystrokes split over several actions", MOUNTS, ("ech", "o bro", "ken >", " {can", "ary}", "\n")
    ),
    Attempt(
        "control keys that edit a line already typed",
        MOUNTS,
        ("ls {canary}", "\x01\x0b", "echo broken > ", "\x19", "\x1b[D", "\x05", "\x15", BREAK, "\n"),
    ),
    Attempt(
        "C-c, C-z and C-\\ to leave the shell",
        "the keys act only inside the sandbox; a new shell also starts there",
        ("sleep 60\n", "C-c", "sleep 60\n", "C-z", "kill %1\n", "C-\\", f"{BREAK}\n"),
        control="",
    ),
    Attempt(
        "the shell escape of a pager",
        MOUNTS,
        ("less /etc/passwd\n", "!", f"{BREAK}\n", "\n", "q", "q"),
        ("less",),
    ),
    Attempt(
        "the shell escape of an editor",
        MOUNTS,
        ("vi -u NONE\n", "\x1b", ":!" + BREAK + "\n", "\n", "\x1b", ":w! {world}/vi\n", "\x1b", ":q!\n"),
        ("vi",),
    ),
    Attempt(
        "writing to the file descriptors of bubblewrap",
        "they are pipes to edge, and edge treats their data as untrusted",
        "for f in /proc/[12]/fd/*; do echo broken > $f & done; wait; " + BREAK + "\n",
    ),
)

# Other attempts, each with its own test: attempt, what stops it, file and test.
KERNEL = "test_escapes_kernel.py"
OTHER_ATTEMPTS = (
    (
        "background processes that outlive the session",
        "edge kills process 1 of their PID namespace, and the kernel kills the others",
        KERNEL,
        "test_background_processes_end_with_the_session",
    ),
    (
        "killing processes outside; killing process 1 and the process that answers edge",
        "separate PID namespace; the sandbox ends and edge brings nothing back",
        KERNEL,
        "test_processes_outside_cannot_be_ended",
    ),
    (
        "ptrace of process 1, of other processes inside, of processes outside",
        "system call filter; separate PID namespace",
        KERNEL,
        "test_ptrace_of_process_1_and_of_others",
    ),
    (
        "su, mount and other setuid programs",
        "no new privileges, no capabilities, nosuid mounts",
        KERNEL,
        "test_setuid_programs_do_not_become_root",
    ),
    (
        "unshare, nsenter, bubblewrap inside the sandbox",
        "system call filter; user namespaces disabled",
        KERNEL,
        "test_no_new_namespaces",
    ),
    (
        "remount, bind, umount, chroot, pivot_root; rm -rf /usr",
        "no capabilities; system call filter; read-only mounts",
        KERNEL,
        "test_mounts_stay_as_they_are",
    ),
    (
        "core_pattern, /proc/sys, sysrq",
        "an unprivileged user; /proc/sys belongs to the root user of the machine",
        KERNEL,
        "test_proc_sys_and_core_pattern",
    ),
    (
        "device files, mknod, /sys",
        "only harmless devices in /dev; no /sys; no capabilities",
        KERNEL,
        "test_devices_and_sys",
    ),
    (
        "keys in the user's session keyring (keyctl)",
        "system call filter",
        KERNEL,
        "test_keys_of_the_session_ring",
    ),
    (
        "vsock, packet, crypto (AF_ALG) and audit sockets",
        "system call filter",
        KERNEL,
        "test_sockets_outside_the_network_namespace",
    ),
    ("a fork bomb", "process limit", KERNEL, "test_a_fork_bomb"),
    (
        "full disks, sparse files",
        "file systems with a size limit; edge counts the bytes that come back",
        KERNEL,
        "test_full_disks",
    ),
    ("very large output", "limited scrollback, limited screen size", KERNEL, "test_huge_output"),
    (
        "too much memory, in one process or in many",
        "data limit of each process; edge watches the memory from outside",
        KERNEL,
        "test_memory",
    ),
    (
        "using up the memory of the machine",
        "edge watches the free memory of the machine",
        KERNEL,
        "test_the_machine_keeps_some_memory",
    ),
    (
        "memory that belongs to no process (memfd, System V)",
        "system call filter",
        KERNEL,
        "test_memory_that_belongs_to_no_process",
    ),
    (
        "terminal escape sequences: clipboard, pass-through, window name",
        "tmux ignores them",
        KERNEL,
        "test_escape_sequences_reach_nothing_around_the_pane",
    ),
    (
        "the prefix key, the commands and the socket of tmux",
        "no prefix key, no key bindings; the socket is not in the sandbox",
        KERNEL,
        "test_tmux_itself",
    ),
    (
        "stopping or flooding the process that answers edge",
        "each answer carries a random mark; edge limits its time and size",
        KERNEL,
        "test_the_process_that_answers_edge",
    ),
    (
        "BASH_ENV, PROMPT_COMMAND, functions in the environment",
        "an empty environment",
        KERNEL,
        "test_hooks_in_the_environment_do_not_run",
    ),
    (
        "bringing back dot-files, .git, hooks, session files, agent instructions, outside links, FIFOs, setuid bits",
        "edge does not bring them back, and lists them; it removes setuid bits",
        KERNEL,
        "test_dot_files_links_and_the_sessions_own_files",
    ),
    (
        "names that begin with a dash or contain control characters",
        "edge does not bring them back; it lists them with escapes",
        "test_workfolder.py",
        "test_names_that_programs_act_on_are_withheld",
    ),
    (
        "links out of the work folder, direct and through other links",
        "edge checks the target of each link",
        "test_workfolder.py",
        "test_links_that_leave",
    ),
    (
        "a link in the user's folder, before and during the write",
        "edge opens each folder without following links",
        "test_workfolder.py",
        "test_a_link_that_appears_while_it_is_brought_back",
    ),
    (
        "overwriting a file that the user changed during the session",
        "edge compares the contents before each write",
        "test_workfolder.py",
        "test_files_that_the_user_changed_stay",
    ),
    (
        'archives with "..", absolute names, files below links, duplicate names',
        "strict archive reader",
        "test_workfolder.py",
        "test_hostile_archives",
    ),
    (
        "hard links and devices in an archive",
        "edge does not bring them back",
        "test_workfolder.py",
        "test_hard_links_and_devices_are_withheld",
    ),
    (
        "deleting files with a truncated archive",
        "edge rejects an archive without its end marker",
        "test_workfolder.py",
        "test_a_truncated_archive_deletes_nothing",
    ),
    ("archives with random damage", "strict archive reader", "test_workfolder.py", "test_random_damage"),
    (
        "the terminal's reply to a displayed file, as the start of the next command",
        "edge clears the shell's input line before it types at the prompt",
        "test_allow_terminal.py",
        "test_a_terminal_reply_is_not_part_of_a_command",
    ),
    (
        "git config, git submodule and pip under a list that allows git log and python -m pytest",
        "a rule fixes the position of each word",
        "test_rules.py",
        "test_words_count_by_their_places",
    ),
    (
        "grep -r . ~/.ssh, .., dot-files and links that leave, under a list of the folder's files",
        "edge follows each path and its links before it types the command",
        "test_rules.py",
        "test_paths_stay_in_the_folder",
    ),
    (
        "options of listed programs that write, run programs or read elsewhere",
        "a rule has only the options that it names",
        "test_rules.py",
        "test_nothing_else_passes_edges_lists",
    ),
    (
        "a git repository under another name, whose files name programs for git",
        "edge does not bring back what git reads in a repository",
        "test_bring_back_attacks.py",
        "test_a_repository_without_a_dot_name",
    ),
    (
        "a repository whose parts come in two sessions or under two spellings",
        "edge looks at all names that are there, before and after",
        "test_bring_back_attacks.py",
        "test_a_repository_in_two_sessions",
    ),
    (
        "changes of a bare repository that the user has",
        "edge does not bring back what git reads in a repository",
        "test_bring_back_attacks.py",
        "test_a_repository_of_the_user_stays_as_it_is",
    ),
    (
        ".git files and folders of worktrees and submodules, and names that mean .git elsewhere",
        "edge compares names without case and invisible characters",
        "test_bring_back_attacks.py",
        "test_names_that_mean_git",
    ),
    (
        "a link through a link of the user that leaves the folder",
        "edge follows each link on the way, without opening it",
        "test_bring_back_attacks.py",
        "test_links_through_the_users_own_links",
    ),
    (
        "an archive that changes after edge showed it",
        "edge writes only what it showed",
        "test_bring_back_attacks.py",
        "test_only_what_was_shown_is_written",
    ),
    (
        "an archive or an undo archive of another session, or a forged one",
        "a seal with a key that no sandbox can read",
        "test_bring_back_attacks.py",
        "test_an_archive_that_edge_did_not_write",
    ),
    (
        "reading the records and archives of sessions in the work folder",
        "edge leaves them out of the sandbox",
        "test_bring_back_attacks.py",
        "test_session_files_are_not_in_the_sandbox",
    ),
    (
        "a forged session record that names another folder",
        "a seal with a key that no sandbox can read",
        "test_bring_back.py",
        "test_a_record_that_edge_did_not_write",
    ),
    (
        "bringing back into a folder that the person is not in",
        "edge asks again, or does nothing",
        "test_bring_back.py",
        "test_it_comes_back_into_the_current_folder_only",
    ),
    (
        "two processes that bring back one session",
        "one lock for the whole operation",
        "test_bring_back.py",
        "test_the_lock_is_held_until_the_record_is_closed",
    ),
    (
        "rm -rf * in an unattended session, or all files made empty",
        "edge deletes few files without a question, and each bring-back can be undone",
        "test_bring_back.py",
        "test_many_deletions_are_not_made_unasked",
    ),
    (
        "commits with names, modules and headers that attack git",
        "git index-pack --strict checks all objects first",
        "test_commits.py",
        "test_bad_objects_are_refused",
    ),
    (
        "hooks, configuration and helpers that run when commits are fetched",
        "edge turns them off; only commits come back",
        "test_commits.py",
        "test_commits_come_back_as_a_branch",
    ),
    (
        "damaged git bundles",
        "a strict reader of the header; git index-pack --strict",
        "test_commits.py",
        "test_damaged_bundles",
    ),
)
