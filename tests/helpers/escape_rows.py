"""More rows of the table in docs/safety.md: attempt, what stops it, file and test."""

from escape_calls import CALLS
from escape_later_calls import LATER_CALLS

SHOWN = "test_shown_files.py"
READ = "test_shown_and_read.py"
STOPPED = "test_bring_back_stopped.py"
RIGHTS = "test_bring_back_rights.py"
OUTSIDE = "test_use_outside.py"
REMOTE = "test_remote.py"
TYPING = "test_typing_terminal.py"
TRIAL = "test_tryout.py"
LYING = "test_lying_servers.py"
LEFT = "edge clears the line before it types at the prompt, and reads prompts only from their own titles"
WORD = "a rule fixes the position of each word"
READER = "edge refuses what it cannot read in full"
_SHOWN_FILES = (
    *("the alternate screen, left on by a shown file", "another character set, left on by a shown file"),
    "insert mode, no wrap and a scroll region, left on by a shown file",
    "the keyboard protocols of xterm and kitty, so that C-c is another sequence",
    "pasted text in brackets that a shown file begins",
    "reports of the mouse and the focus",
    "an escape sequence without its end, which swallows the next prompt",
    "a command of tmux in the title",
    "questions about the palette, the clipboard, modes and keys",
    "reports of the window's size and title",
)
_REFUSED = (
    ("abbreviations of long options, and options in a cluster of letters", WORD),
    ("options after --", WORD),
    ("assignments before a program, and as arguments of make", READER),
    ("special targets of make, and plugins and argument files of pytest", WORD),
    ("magic in the paths of git, and files of old commits", "edge follows each path and its links"),
    ("paths and programs spelled with several quotations", READER),
    ("letters of other alphabets, other line separators, line continuations", READER),
)

MORE_ROWS = (
    *((one.name, one.stops, "test_escapes_by_calls.py", "test_they_fail_in_the_sandbox") for one in CALLS),
    (
        "real-time priority, the system's crash handler, large pages",
        "limits; system call filter",
        OUTSIDE,
        "test_what_only_a_limit_stops",
    ),
    (
        "millions of files without content",
        "edge counts the kernel's memory for files",
        OUTSIDE,
        "test_files_without_content",
    ),
    (
        "a false answer that fills the memory of edge",
        "edge keeps only names that it knows",
        OUTSIDE,
        "test_a_false_answer_does_not_fill_edges_memory",
    ),
    (
        "an archive with very long names",
        "edge limits the bytes of all names",
        OUTSIDE,
        "test_long_names_do_not_fill_edges_memory",
    ),
    (
        "a git bundle of 16 kB with an object of 8 GB",
        "git reads a bundle with limited memory",
        OUTSIDE,
        "test_a_small_bundle_with_a_large_object",
    ),
    (
        "memory and crashes of the trial of an unknown model file",
        "limits",
        OUTSIDE,
        "test_the_trial_of_an_unknown_file_has_limits",
    ),
    (
        "a terminal title like that of the shell's next prompt, in a shown file",
        "titles of prompts contain a secret, and only later ones count",
        SHOWN,
        "test_a_forged_prompt_is_no_prompt",
    ),
    *((name, LEFT, SHOWN, "test_what_a_shown_file_leaves_on") for name in _SHOWN_FILES),
    (
        "letters that are keys in a locale that is not installed",
        "the shell gets a locale that this system has",
        SHOWN,
        "test_a_locale_that_is_not_installed",
    ),
    (
        "a program of the folder under an allowed name, through a relative folder in PATH",
        "the shell gets only the absolute folders of PATH",
        SHOWN,
        "test_names_do_not_mean_programs_of_the_folder",
    ),
    (
        "keystrokes that hide a command from the person: blanks, long and wide text, markup",
        "edge shows all of them, with escapes",
        READ,
        "test_no_text_hides_a_command",
    ),
    (
        "a plan that looks like edge's own list of commands and question",
        "edge indents the model's lines",
        READ,
        "test_the_models_text_cannot_be_a_list_of_commands",
    ),
    (
        "edge's marks for line breaks and spaces, typed by the model",
        "edge escapes them",
        READ,
        "test_marks_that_the_model_types_are_escaped",
    ),
    (
        "right-to-left letters that change the order of words on the screen",
        "edge marks them",
        READ,
        "test_letters_that_change_the_order_are_marked",
    ),
    (
        "texts that look like the name of a key",
        "edge says which keystrokes are a key",
        READ,
        "test_only_names_of_keys_are_keys",
    ),
    (
        "a revision of git that is a link out of the folder, where there is no repository",
        "edge follows the links of revisions too",
        READ,
        "test_edges_lists_refuse",
    ),
    *((name, stops, READ, "test_edges_lists_refuse") for name, stops in _REFUSED),
    (
        "files to which the user's own CLAUDE.md, .envrc or git hook is a link",
        "edge does not bring them back",
        RIGHTS,
        "test_files_behind_the_users_own_names",
    ),
    (
        "another file in the place of a link to the session's allowlist",
        "edge guards each link on the way",
        RIGHTS,
        "test_each_link_to_the_sessions_own_files",
    ),
    (
        "a git bundle of another session in the work folder, beside a record of any name",
        "edge hides such names, and does not bring them back",
        RIGHTS,
        "test_names_of_session_files",
    ),
    (
        "access lists (ACL) that a changed file loses, so that its group can read it",
        "edge copies the attributes of the old file",
        RIGHTS,
        "test_access_lists_stay",
    ),
    (
        "kill -9 while edge brings back or undoes",
        "edge replaces each file in one step; the same command resumes",
        STOPPED,
        "test_kill_9_in_the_middle",
    ),
    ("an undo of an undo", "an undo happens once", STOPPED, "test_undo_of_an_undo"),
    (
        "two sessions that change the same files",
        "edge compares the contents before each write",
        STOPPED,
        "test_two_sessions_with_the_same_files",
    ),
    (
        "two processes that write into one folder",
        "one lock for each folder",
        STOPPED,
        "test_two_processes_in_one_folder",
    ),
    (
        "a full disk while edge brings back",
        "edge replaces each file in one step; the rest stays in the archive",
        STOPPED,
        "test_a_full_disk_in_the_middle",
    ),
    ("jumps of the clock", "edge compares contents, not times", STOPPED, "test_other_times_of_the_clock"),
    (
        "names that are not UTF-8, very long, or other spellings of the user's names",
        "edge compares and writes the bytes of names",
        STOPPED,
        "test_odd_names",
    ),
    (
        "files that become folders, links or FIFOs, and folders that become files",
        "edge does not change the kind of a folder",
        STOPPED,
        "test_other_kinds_in_place_of_files",
    ),
    (
        "links in the place of all files, in an unattended session",
        "edge counts them as deletions",
        STOPPED,
        "test_files_that_become_links_are_losses",
    ),
    (
        "the terminal's reply to a shown file, run by C-o, or by Enter after another key",
        "edge types the line again before the first key at a prompt",
        TYPING,
        "test_keys_do_not_run_the_reply",
    ),
    (
        "a key between the parts of a line that the kernel cuts, so that another file is deleted",
        "edge counts the bytes of keys too",
        TYPING,
        "test_a_key_between_the_parts_of_a_long_line_does_not_hide_its_length",
    ),
    (
        "an accepted last command that the end of the session kills in silence",
        "edge gives it time, saves what it did, and says if it continues",
        REMOTE,
        "test_the_last_command_runs_to_its_end",
    ),
    (
        "a wait for a background job, counted as a repeated action",
        "edge looks for processes of the terminal",
        "test_endings.py",
        "test_what_is_not_a_repeated_action",
    ),
    (
        "compiled Python that runs instead of a source that the session did not change",
        "edge does not bring it back",
        "test_bring_back_attacks.py",
        "test_compiled_code_that_runs_instead_of_a_source",
    ),
    (
        "compiled libraries and modules that hide Python's, among many new files",
        "edge marks them",
        "test_listing.py",
        "test_names_that_agents_and_programs_act_on",
    ),
    (
        "a plan that the terminal breaks into lines that look like those of edge",
        "edge breaks and indents the model's lines itself",
        READ,
        "test_the_width_of_the_terminal_does_not_make_lines_of_edge",
    ),
    (
        "blanks other than spaces, and 100 marks of one kind, in the list of risks",
        "edge shows the blanks as escapes, and says that the list continues",
        READ,
        "test_a_mark_names_a_blank_that_is_no_space",
    ),
    (
        "a program with a line break in its name, which stopped edge",
        "edge replaces such letters",
        "test_waits.py",
        "test_a_wait_ends_with_its_command",
    ),
    (
        "chmod -R 644 . and chmod 000 ., after which nothing was saved",
        "the script in the sandbox gives the owner the rights back",
        "test_sandbox.py",
        "test_a_work_folder_that_nobody_may_enter_is_saved",
    ),
    (
        "commits of a SHA-256 repository, which were refused",
        "edge checks them in a repository of the same form",
        "test_commits.py",
        "test_commits_of_each_object_format",
    ),
    (
        "an answer to a question after an editor that failed: it accepts an action that is not on the screen",
        "edge shows the action again after each edit",
        "test_agent.py",
        "test_an_editor_that_fails_changes_nothing",
    ),
    *(
        (one.name, one.stops, "test_escapes_by_calls.py", "test_they_fail_in_the_sandbox")
        for one in LATER_CALLS
    ),
    (
        "a model file that stops llama.cpp, with right checksums",
        "edge tries each file that it did not write",
        "test_forged_models.py",
        "test_each_command_refuses_it",
    ),
    (
        "the same with checksums that are zeros, as in an unfinished file",
        "edge tries each file that it did not write",
        TRIAL,
        "test_checksums_do_not_replace_the_trial",
    ),
    (
        "a mark of another user, or a changed one, that a model file needs no trial",
        "a seal with a key that no sandbox can read",
        TRIAL,
        "test_a_mark_that_edge_did_not_make",
    ),
    (
        "a model file whose chat template ends the trial before it computes a token",
        "the trial computes tokens without the template first",
        TRIAL,
        "test_the_files_own_template_cannot_end_the_trial",
    ),
    (
        "a model file with so large holes that the trial has no sandbox",
        "limits that are numbers for the system",
        "test_confined.py",
        "test_a_file_with_holes_leaves_the_sandbox",
    ),
    (
        "a model file with a name that an adapter has in the sandbox of the trial",
        "separate folders",
        "test_confined.py",
        "test_an_adapter_beside_a_file_of_any_name",
    ),
    (
        "an adapter of somebody else",
        "edge tries it on the model",
        TRIAL,
        "test_an_adapter_that_edge_did_not_write_is_tried",
    ),
    (
        "formats of git log that run gpg, under edge's list for git",
        WORD,
        READ,
        "test_edges_lists_refuse",
    ),
    (
        "programs that only the shell can name: ${X:-rm}, rm${IFS}x, /bin/r?",
        "edge marks them",
        "test_allow.py",
        "test_each_command_of_a_kind_is_marked",
    ),
    (
        "output of a program that looks like edge's own step, list of commands and question",
        "edge shows the screen behind a border",
        READ,
        "test_a_programs_output_cannot_be_lines_of_edge",
    ),
    (
        "instructions for agents with a dot, a space or a stream after the name (FAT, NTFS)",
        "edge compares names as these file systems do",
        "test_listing.py",
        "test_names_that_agents_and_programs_act_on",
    ),
    (
        "a folder with the name ~, whose removal removes the home folder",
        "edge does not bring it back",
        "test_workfolder.py",
        "test_names_that_programs_act_on_are_withheld",
    ),
    (
        "a server that sends a byte now and then: in a header, a chunk's name, a trailer, interim responses",
        "edge ends the connection at the time limit",
        LYING,
        "test_an_answer_that_never_ends",
    ),
    (
        "a server that sends 9 kB that become 3 GB (gzip in gzip)",
        "edge takes no compressed answer",
        LYING,
        "test_a_small_answer_that_becomes_large",
    ),
    (
        "a server that counts tokens with 400 digits",
        "edge ignores such counts",
        LYING,
        "test_counts_that_cannot_be",
    ),
    (
        "a private file or folder under another name, which the group and others could then read",
        "edge keeps what the old rights did not give",
        RIGHTS,
        "test_private_files_stay_private_under_another_name",
    ),
    (
        "an undo of deleted private folders, and of private files that became links",
        "edge restores their rights",
        RIGHTS,
        "test_the_undo_gives_nobody_else_rights",
    ),
    (
        "an undo of a deleted file with an access list, whose group could then write it",
        "edge drops the rights that were the list's",
        RIGHTS,
        "test_the_undo_of_a_file_with_an_access_list",
    ),
    (
        "keystrokes as wide as the terminal, which go on as lines of edge",
        "edge breaks the lines, and marks the rest of one",
        READ,
        "test_keystrokes_as_wide_as_the_terminal_are_no_lines_of_edge",
    ),
    (
        "names and lines of files as wide as the terminal, in the list of changes and in the diff",
        "edge breaks the lines, and marks the rest of one",
        READ,
        "test_names_and_lines_as_wide_as_the_terminal_are_no_lines_of_edge",
    ),
    (
        "formats of git log that run gpg behind a placeholder that git does not know (%-%GG)",
        "edge's list has no such format",
        READ,
        "test_edges_lists_refuse",
    ),
    (
        "letters of an accepted line that stty made keys, so that another line runs",
        "edge gives the terminal its usual keys back",
        TYPING,
        "test_stty_makes_no_letter_a_key",
    ),
    (
        "a program named git in .git, through a relative folder in PATH, when commits come back",
        "edge uses only the absolute folders of PATH",
        "test_commits.py",
        "test_a_program_of_the_repository_is_not_git",
    ),
    (
        "a file of the user that changes between the list of changes and the answer",
        "edge brings nothing back, and says how to do it later",
        "test_bring_back.py",
        "test_a_file_that_changes_after_the_list",
    ),
    (
        "what agents did in reports: databases reset, agents without questions, Windows shells, secrets searched",
        "edge marks them",
        "test_allow.py",
        "test_what_agents_did_in_reports_is_marked",
    ),
    (
        "a work folder whose name is a format of tmux that runs a command: #(command)",
        "edge gives tmux the folder as its own, and not as text",
        "test_tmux.py",
        "test_a_format_of_tmux_in_the_name_of_the_folder_is_only_a_name",
    ),
    (
        "diff of two folders that hold links to files elsewhere, under edge's list for reading",
        "edge's list compares files only",
        READ,
        "test_edges_lists_refuse",
    ),
    (
        "a proxy of the environment that gets the key and the terminal, with a server on this machine",
        "edge connects to it directly",
        "test_openai.py",
        "test_a_server_of_this_machine_is_asked_without_a_proxy",
    ),
    (
        "names with blanks at an end, which look like other names in the list of changes",
        "edge shows them as escapes",
        "test_listing.py",
        "test_files_and_folders_are_marked",
    ),
    (
        "an undo that is not whole and looks as if it were",
        "edge ends with exit code 1, and says what changed since",
        "test_bring_back_stopped.py",
        "test_an_undo_that_is_not_whole_ends_with_1",
    ),
    (
        "a folder whose default access list (ACL) gives other users rights to changed and restored files",
        "edge drops the list that a file gets from its folder",
        RIGHTS,
        "test_a_folders_default_list_gives_nobody_rights_to_what_was_private",
    ),
    (
        "a letter that stty made the end of input: it ends the shell, and the next one reads the rest of the line",
        "edge types the first letter of a line as text",
        "test_sandbox.py",
        "test_a_line_keeps_its_letters",
    ),
    (
        "stty iuclc, which makes capital letters of an accepted line small, so that another file is meant",
        "edge gives the terminal its letters back",
        TYPING,
        "test_a_line_keeps_its_letters",
    ),
    (
        "keys of letters again, after unset PROMPT_COMMAND",
        "the line editor has the setting from a file",
        TYPING,
        "test_a_line_keeps_its_letters",
    ),
    (
        "a link in the folder that leads to a dot-file of the folder, under edge's lists",
        "edge follows each path and its links",
        READ,
        "test_edges_lists_refuse",
    ),
    (
        "a server on another address of this machine (127.1, 0.0.0.0, ::ffff:127.0.0.1), and a proxy",
        "edge connects to it directly",
        "test_openai.py",
        "test_a_server_of_this_machine_is_asked_without_a_proxy",
    ),
    (
        "270 commands of the field without a mark: stores, clusters, logins, toolchains, tunnels",
        "edge marks them",
        "test_allow.py",
        "test_what_deletes_sends_or_reads_keys_in_the_field_is_marked",
    ),
    (
        "a folder that hides a module of Python (json/__init__.py), and build files of more programs",
        "edge marks them in the list of changes",
        "test_listing.py",
        "test_names_that_agents_and_programs_act_on",
    ),
    (
        "the same name of a folder, when a shell has ended and edge starts a new one",
        "tmux keeps the folder of the first shell",
        "test_tmux.py",
        "test_a_format_of_tmux_in_the_name_is_only_a_name_for_a_new_shell_too",
    ),
    (
        "a file with a time of more than 2^62 seconds, after which nothing was saved",
        "edge takes it as the last time that it knows",
        "test_bring_back_attacks.py",
        "test_times_that_no_system_has",
    ),
    (
        "what a program writes through a map of a file in memory (numpy.memmap, databases), which was not saved",
        "of files that were opened, the contents are compared",
        "test_sandbox.py",
        "test_what_is_written_through_a_map_of_a_file_is_saved",
    ),
    (
        "commits of branches with names that look alike (a/b, a-b), with signs, or beyond 20, left out in silence",
        "each has a branch of its own, or edge says that it has none",
        "test_commits.py",
        "test_commits_of_every_branch_come_back",
    ),
    (
        "a server that sends the key back in an address, a kind, a coding or a name of a model",
        "no message has it",
        "test_remote.py",
        "test_no_message_repeats_the_key_of_a_server_that_sends_it_back",
    ),
    (
        "a second session of one task in the same second, which was refused while the model of the first opened",
        "edge chooses the name of the record again",
        REMOTE,
        "test_a_session_that_begins_while_the_model_of_another_opens",
    ),
    (
        "capture of screen, camera and microphone, encryption of files, miners, tools of attackers, lists of all "
        "variables, without a mark",
        "edge marks them",
        "test_allow.py",
        "test_what_deletes_sends_or_reads_keys_in_the_field_is_marked",
    ),
    (
        "git blame -S/etc/passwd, which shows the lines of any file in errors, under edge's list for git",
        "edge does not type it unasked: blame has a rule of its own",
        "test_rules.py",
        "test_nothing_else_passes_edges_lists",
    ),
    (
        "blanks at the ends of folders and of what links lead to, in the list of changes and the diff",
        "edge shows them",
        "test_listing.py",
        "test_blanks_at_the_ends_of_folders_and_link_targets_are_shown",
    ),
    (
        "accents in piles or without a letter, which a terminal paints over other text; letters without a glyph",
        "edge shows escapes",
        "test_listing.py",
        "test_a_pile_of_accents_does_not_paint_over_other_lines",
    ),
    (
        "history expansion, turned on by an accepted line, which puts an earlier line into a later one",
        "the shell turns it off before each prompt",
        "test_typing_terminal.py",
        "test_an_exclamation_mark_puts_in_no_earlier_line",
    ),
    (
        "the begin of a paste in an accepted line, which swallows the next lines",
        "the shell knows no paste",
        "test_typing_terminal.py",
        "test_a_line_does_not_begin_a_paste_that_swallows_the_next_ones",
    ),
    (
        "a server whose model has half of a surrogate pair in its name, which stopped edge with a traceback",
        "edge ends with one line",
        REMOTE,
        "test_the_model_of_a_server",
    ),
    (
        "28 of 30 files cut to one byte in an unattended session",
        "they count as lost: edge brings none of them back",
        "test_bring_back_stopped.py",
        "test_files_that_are_cut_short_are_losses",
    ),
)
