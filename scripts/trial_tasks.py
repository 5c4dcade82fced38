"""The kinds of tasks in edge's own suite of trials: wordings, files, check, solution; trial_suite.py fills them.

`<a>`, `<b>` … are names, `<w>`, `<v>` words, `<n>` a small number; each of the three tasks of a kind has its own. A
check is bash that runs in the work folder; every file that `may_change` does not name must also be as it was. A check
starts no file of the work folder, and no program that obeys settings in it: both could write the reward.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kind:
    """One kind of tasks. `say`: the wording of each task. `files`: what the folder has at the beginning.

    `run`: commands that make the rest of it. `solve`, `check`: bash. `image`: what Docker needs; edge does not use it.
    """

    name: str
    level: int
    say: tuple[str, str, str]
    files: dict[str, str]
    solve: str
    check: str
    may_change: tuple[str, ...]
    run: tuple[str, ...] = ()
    image: str = "debian:12-slim"
    variables: dict[str, str] = field(default_factory=dict)


_POEM = "<w> in the morning\nrain over <v>\n<v> and <w>\nno wind at all\n"
_TABLE = "item,amount\n<w>,14\n<v>,3\n<u>,27\nbrass,9\n"
_LOG = "10:01 start\n10:02 <w> ready\n10:03 <v> waits\n10:05 <w> stopped\n10:06 <u> lost\n10:07 <w> again\n10:09 end\n"
_GIT = {
    name: value
    for who in ("AUTHOR", "COMMITTER")
    for name, value in (
        (f"GIT_{who}_NAME", "Ines"),
        (f"GIT_{who}_EMAIL", "ines@example.com"),
        (f"GIT_{who}_DATE", "2023-11-14T22:13:20Z"),  # the hash of a commit is on the screen
    )
}
# Reads commits without the settings, hooks and replacements of the repository: they can name programs.
_READ_GIT = (
    "export GIT_DIR=/tmp/seen GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_NO_REPLACE_OBJECTS=1; "
    "git init -q --bare --template=; for part in HEAD refs packed-refs; do "
    "test ! -e .git/$part || cp -r .git/$part /tmp/seen/; done; export GIT_OBJECT_DIRECTORY=/app/.git/objects; "
)

ONE_COMMAND = (
    Kind(
        "make-folder",
        1,
        (
            "I need a folder named <a> here.",
            "Set up a directory <a>.",
            "There is no folder <a> yet; create it.",
        ),
        {"<b>.txt": _POEM},
        "mkdir <a>",
        "test -d <a>",
        (),
    ),
    Kind(
        "make-file",
        1,
        (
            "Make the file <a>.txt without any content.",
            "An empty file <a>.txt has to be in this folder; create it.",
            "Start a blank file called <a>.txt.",
        ),
        {"<b>.txt": _POEM},
        "touch <a>.txt",
        "test -f <a>.txt; test ! -s <a>.txt",
        ("<a>.txt",),
    ),
    Kind(
        "copy-file",
        1,
        (
            "I want a copy of <a>.txt that is called <b>.txt.",
            "There should be a second file with the text of <a>.txt, called <b>.txt.",
            "Before I edit <a>.txt, save its text in <b>.txt too.",
        ),
        {"<a>.txt": _POEM, "<c>.txt": "<u>\n"},
        "cp <a>.txt <b>.txt",
        "test ! -L <b>.txt; cmp <a>.txt <b>.txt",
        ("<b>.txt",),
    ),
    Kind(
        "rename-file",
        1,
        (
            "The file <a>.csv should be called <b>.csv.",
            "From now on <a>.csv has the name <b>.csv: change it.",
            "Change the name of <a>.csv into <b>.csv.",
        ),
        {"<a>.csv": _TABLE, "<c>.csv": "item,amount\n<u>,1\n"},
        "mv <a>.csv <b>.csv",
        'test ! -e <a>.csv; test "$(sha256sum < <b>.csv)" = "$(sha256sum < /tests/files/<a>.csv)"',
        ("<a>.csv", "<b>.csv"),
    ),
    Kind(
        "remove-file",
        1,
        (
            "Nobody needs <a>.log any more: delete it.",
            "I have read <a>.log and it only takes room here, so throw it away.",
            "<a>.log can go. Remove that file.",
        ),
        {"<a>.log": _LOG, "<b>.log": "10:00 <u>\n"},
        "rm <a>.log",
        "test ! -e <a>.log",
        ("<a>.log",),
    ),
    Kind(
        "move-file",
        1,
        (
            "<a>.txt belongs into the folder <d>: move it there.",
            "Put the file <a>.txt into <d>.",
            "Take <a>.txt from here and place it inside <d>.",
        ),
        {"<a>.txt": _POEM, "<d>/<b>.txt": "<u>\n", "<c>.txt": "<v>\n"},
        "mv <a>.txt <d>/",
        "test ! -e <a>.txt; cmp <d>/<a>.txt /tests/files/<a>.txt",
        ("<a>.txt", "<d>/<a>.txt"),
    ),
    Kind(
        "make-executable",
        1,
        (
            "I cannot start <a>.sh. Give it the right to be executed.",
            "Set the executable bit of <a>.sh.",
            "Allow <a>.sh to be run as a program.",
        ),
        {"<a>.sh": "#!/bin/sh\necho <w>\n", "<b>.sh": "#!/bin/sh\necho <v>\n"},
        "chmod +x <a>.sh",
        "test -x <a>.sh; test ! -x <b>.sh; cmp <a>.sh /tests/files/<a>.sh",
        ("<a>.sh",),
    ),
    Kind(
        "append-line",
        1,
        (
            "Add the line '<w> <v>' at the end of <a>.txt.",
            "<a>.txt needs one more last line: '<w> <v>'.",
            "Write '<w> <v>' below the last line of <a>.txt.",
        ),
        {"<a>.txt": "one <u>\ntwo <u>\n", "<b>.txt": "<v>\n"},
        "echo '<w> <v>' >> <a>.txt",
        "printf 'one <u>\\ntwo <u>\\n<w> <v>\\n' | cmp - <a>.txt",
        ("<a>.txt",),
    ),
    Kind(
        "sort-lines",
        1,
        (
            "Bring the lines of <a>.txt into alphabetical order and store them as <b>.txt.",
            "<b>.txt should have the sorted lines of <a>.txt.",
            "Sort <a>.txt; the result goes to <b>.txt.",
        ),
        {"<a>.txt": "<w>\n<u>\nzinc\n<v>\namber\n", "<c>.txt": "<v>\n"},
        "sort <a>.txt > <b>.txt",
        "LC_ALL=C sort /tests/files/<a>.txt | cmp - <b>.txt",
        ("<b>.txt",),
    ),
    Kind(
        "matching-lines",
        1,
        (
            "Save all lines of <a>.log with the word <w> in <b>.txt.",
            "Search <a>.log for <w> and write the lines that have it into <b>.txt.",
            "<b>.txt should contain just those lines of <a>.log in which <w> occurs.",
        ),
        {"<a>.log": _LOG, "<c>.log": "10:00 <u>\n"},
        "grep <w> <a>.log > <b>.txt",
        "grep <w> /tests/files/<a>.log | cmp - <b>.txt",
        ("<b>.txt",),
    ),
    Kind(
        "replace-word",
        1,
        (
            "In <a>.txt, put <u> in the place of <w> everywhere.",
            "Every <w> in <a>.txt has to become <u>.",
            "Exchange the word <w> for <u> throughout <a>.txt.",
        ),
        {"<a>.txt": _POEM, "<b>.txt": "<w> <v>\n"},
        "sed -i 's/<w>/<u>/g' <a>.txt",
        "sed 's/<w>/<u>/g' /tests/files/<a>.txt | cmp - <a>.txt",
        ("<a>.txt",),
    ),
    Kind(
        "pack-folder",
        1,
        (
            "Make the archive <b>.tar.gz of the folder <d>.",
            "Put the directory <d> into a gzipped tar file called <b>.tar.gz.",
            "I want to send <d> to somebody: pack it as <b>.tar.gz.",
        ),
        {"<d>/<a>.txt": _POEM, "<d>/<c>.csv": _TABLE, "<e>.txt": "<u>\n"},
        "tar -czf <b>.tar.gz <d>",
        "tar -xzOf <b>.tar.gz --wildcards '*<a>.txt' | cmp - /tests/files/<d>/<a>.txt; "
        "tar -xzOf <b>.tar.gz --wildcards '*<c>.csv' | cmp - /tests/files/<d>/<c>.csv",
        ("<b>.tar.gz",),
    ),
)

FEW_STEPS = (
    Kind(
        "gather-tables",
        2,
        (
            "Make a folder <d> and move all csv files of this folder into it.",
            "The csv files clutter this place: they should all be in a new folder <d>.",
            "Create <d>, then put every file that ends with .csv there.",
        ),
        {"<a>.csv": _TABLE, "<b>.csv": "item,amount\n<u>,1\n", "<c>.txt": _POEM},
        "mkdir <d>\nmv *.csv <d>/",
        "test ! -e <a>.csv; test ! -e <b>.csv; cmp <d>/<a>.csv /tests/files/<a>.csv; "
        "cmp <d>/<b>.csv /tests/files/<b>.csv",
        ("<a>.csv", "<b>.csv", "<d>", "<d>/*"),
    ),
    Kind(
        "copy-without",
        2,
        (
            "Copy the folder <d> to <e>, and delete <a>.log from the copy.",
            "<e> should be a copy of the folder <d>, but without <a>.log.",
            "I need all of <d> except <a>.log in a second folder <e>.",
        ),
        {"<d>/<a>.log": _LOG, "<d>/<b>.txt": _POEM, "<c>.txt": "<u>\n"},
        "cp -r <d> <e>\nrm <e>/<a>.log",
        "test ! -e <e>/<a>.log; cmp <e>/<b>.txt /tests/files/<d>/<b>.txt",
        ("<e>", "<e>/*"),
    ),
    Kind(
        "folder-with-note",
        2,
        (
            "Create the folder <d>, and in it the file <a>.txt with the text '<w> <v>'.",
            "I want a file <d>/<a>.txt that says '<w> <v>'; the folder <d> does not exist yet.",
            "First make <d>. Then write '<w> <v>' into <a>.txt there.",
        ),
        {"<b>.txt": _POEM},
        "mkdir <d>\necho '<w> <v>' > <d>/<a>.txt",
        'test "$(cat <d>/<a>.txt)" = "<w> <v>"',
        ("<d>", "<d>/*"),
    ),
    Kind(
        "join-and-remove",
        2,
        (
            "Join <a>.txt and <b>.txt, in this order, to <c>.txt. Then delete the two.",
            "<c>.txt should hold the text of <a>.txt followed by that of <b>.txt, and these two files should be gone.",
            "Put <a>.txt and after it <b>.txt together as <c>.txt; remove both parts afterwards.",
        ),
        {"<a>.txt": _POEM, "<b>.txt": "<u>\n", "<e>.txt": "<v>\n"},
        "cat <a>.txt <b>.txt > <c>.txt\nrm <a>.txt <b>.txt",
        "test ! -e <a>.txt; test ! -e <b>.txt; cat /tests/files/<a>.txt /tests/files/<b>.txt | cmp - <c>.txt",
        ("<a>.txt", "<b>.txt", "<c>.txt"),
    ),
    Kind(
        "unpack-and-rename",
        2,
        (
            "Unpack <b>.tar.gz. The file <a>.txt in it should then be called <c>.txt.",
            "There is a file <a>.txt in <b>.tar.gz: extract it here and name it <c>.txt.",
            "Get <a>.txt out of the archive <b>.tar.gz, and rename it to <c>.txt.",
        ),
        {"<a>.txt": _POEM, "<e>.txt": "<u>\n"},
        "tar -xzf <b>.tar.gz\nmv <a>.txt <c>.txt",
        "test ! -e <a>.txt; cmp <c>.txt /tests/files/<a>.txt; test -s <b>.tar.gz",
        ("<a>.txt", "<c>.txt"),
        run=("tar -cf - <a>.txt | gzip -n > <b>.tar.gz && touch -r <a>.txt <b>.tar.gz && rm <a>.txt",),
    ),
    Kind(
        "first-commit",
        2,
        (
            "Make this folder a git repository and commit <a>.py with the message '<w> <v>'.",
            "Put <a>.py, and only it, under version control with git: the first commit is called '<w> <v>'.",
            "Start a git repository here. Its first commit, '<w> <v>', contains just <a>.py.",
        ),
        {"<a>.py": "print('<u>')\n", "<b>.txt": _POEM},
        "git init -q\ngit add <a>.py\ngit commit -q -m '<w> <v>'",
        _READ_GIT
        + 'test "$(git log --format=%s)" = "<w> <v>"; test "$(git ls-tree --name-only HEAD)" = <a>.py',
        (".git", ".git/*"),
        image="buildpack-deps:bookworm-scm",
        variables=_GIT,
    ),
    Kind(
        "largest-rows",
        2,
        (
            "Write the two rows of <a>.csv with the largest amounts to <b>.csv, the largest first, without the header.",
            "<b>.csv should have just two lines: the rows of <a>.csv with the highest and the second highest amount.",
            "Find the two largest amounts in <a>.csv and save their rows, larger one first, as <b>.csv.",
        ),
        {"<a>.csv": _TABLE, "<c>.txt": _POEM},
        "tail -n +2 <a>.csv | sort -t , -k 2 -nr | head -n 2 > <b>.csv",
        "printf '<u>,27\\n<w>,14\\n' | cmp - <b>.csv",
        ("<b>.csv",),
    ),
    Kind(
        "change-and-list",
        2,
        (
            "Replace <w> by <u> in all txt files here, and write the names of the txt files, sorted, to <b>.lst.",
            "No txt file may say <w> any more, but <u>. Then list the names of all txt files, sorted, in <b>.lst.",
            "Turn <w> into <u> in each txt file; <b>.lst should name these files in order, one on a line.",
        ),
        {"<a>.txt": _POEM, "<c>.txt": "<w>\n", "<e>.csv": "item\n<w>\n"},
        "sed -i 's/<w>/<u>/g' *.txt\nls *.txt > <b>.lst",
        "sed 's/<w>/<u>/g' /tests/files/<a>.txt | cmp - <a>.txt; "
        "sed 's/<w>/<u>/g' /tests/files/<c>.txt | cmp - <c>.txt; "
        "printf '%s\\n' <a>.txt <c>.txt | LC_ALL=C sort | cmp - <b>.lst",
        ("<a>.txt", "<c>.txt", "<b>.lst"),
    ),
)

FIND_OUT = (
    Kind(
        "file-with-word",
        3,
        (
            "One file in this folder contains the word <w>. Delete that file and no other.",
            "Somewhere in these files stands <w>. The file that has it must go.",
            "Look for the file with <w> in its text, and remove it.",
        ),
        {"<a>.txt": "<v>\n<u>\n", "<b>.txt": "<u>\nthe <w>\n", "<c>.txt": "<u> <v>\n", "<d>.txt": "<v>\n"},
        "rm $(grep -l <w> *.txt)",
        "test ! -e <b>.txt",
        ("<b>.txt",),
    ),
    Kind(
        "longest-file",
        3,
        (
            "Which log file here has the most lines? Write its name to <e>.txt.",
            "<e>.txt should say the name of the log file with the largest number of lines.",
            "Count the lines of the log files, and note the name of the longest one in <e>.txt.",
        ),
        {"<a>.log": "10:00 <u>\n", "<b>.log": _LOG + _LOG, "<c>.log": _LOG},
        "wc -l *.log | sort -n | tail -n 2 | head -n 1 | awk '{print $2}' > <e>.txt",
        'test "$(tr -d " \\n" < <e>.txt)" = <b>.log',
        ("<e>.txt",),
    ),
    Kind(
        "missing-setting",
        3,
        (
            "<a>.sh stops because a setting is missing. Add what it asks for to <b>.cfg with the value <n>.",
            "Run <a>.sh: it tells which setting <b>.cfg lacks. Give that setting the value <n>.",
            "Something is not set in <b>.cfg, so that sh <a>.sh fails. Set it to <n>.",
        ),
        {
            "<a>.sh": '#!/bin/sh\nfor name in <w> <v> <u>; do\n  grep -q "^$name=" <b>.cfg || '
            '{ echo "error: $name is not set in <b>.cfg, write $name=NUMBER"; exit 1; }\ndone\necho all set\n',
            "<b>.cfg": "<w>=4\n<u>=8\n",
            "<c>.txt": _POEM,
        },
        "echo '<v>=<n>' >> <b>.cfg",
        "grep -qx '<v>=<n>' <b>.cfg; grep -qx '<w>=4' <b>.cfg; grep -qx '<u>=8' <b>.cfg",
        ("<b>.cfg",),
    ),
    Kind(
        "largest-file",
        3,
        (
            "Delete the largest file in the folder <d>.",
            "One file in <d> takes most of the room. Remove it.",
            "Find out which file of <d> is the biggest, and get rid of that one.",
        ),
        {
            "<d>/<a>.dat": "<w>\n" * 20,
            "<d>/<b>.dat": "<w>\n" * 300,
            "<d>/<c>.dat": "<w>\n" * 90,
            "<e>.txt": "<u>\n",
        },
        'rm "<d>/$(ls -S <d> | head -n 1)"',
        "test ! -e <d>/<b>.dat",
        ("<d>/<b>.dat",),
    ),
    Kind(
        "same-content",
        3,
        (
            "Two files here have the same content. Remove the one whose name is later in the alphabet.",
            "There is a duplicate among these files: keep the first of the two by name, delete the other.",
            "Find the two equal files, and delete the one that ls shows last.",
        ),
        {"<a>.txt": _POEM, "<b>.txt": "<u>\n<w>\n", "<c>.txt": "<u>\n<v>\n"},
        'rm "$(sha256sum *.txt | sort | uniq -w 64 -D | sed "s/.*  //" | sort | tail -n 1)"',
        'test "$(ls *.txt | wc -l)" = 3; test "$(sha256sum *.txt | cut -c 1-64 | sort -u | wc -l)" = 3; '
        "test ! -e z<a>.txt",
        ("z<a>.txt",),
        run=("cp -p <a>.txt z<a>.txt",),
    ),
    Kind(
        "lost-file",
        3,
        (
            "A file <a>.md is somewhere in the folders below here. Move it to this folder.",
            "Where is <a>.md? Find it and bring it here, into the current folder.",
            "<a>.md got lost in one of the subfolders; it should be right here.",
        ),
        {"<b>/<c>/<a>.md": _POEM, "<b>/<e>.md": "<u>\n", "<d>/<c>.md": "<v>\n"},
        "mv $(find . -name <a>.md) .",
        "cmp <a>.md /tests/files/<b>/<c>/<a>.md; test ! -e <b>/<c>/<a>.md",
        ("<a>.md", "<b>/<c>/<a>.md", "<b>/<c>"),
    ),
    Kind(
        "read-then-make",
        3,
        (
            "<a>.txt names a folder. Make an empty file <b>.flag in that folder.",
            "Read <a>.txt: the folder that it names needs an empty file called <b>.flag.",
            "In the folder about which <a>.txt speaks, create the empty file <b>.flag.",
        ),
        {"<a>.txt": "the folder is <c>\n", "<c>/<e>.txt": "<u>\n", "<d>/<e>.txt": "<v>\n"},
        "touch <c>/<b>.flag",
        "test -f <c>/<b>.flag; test ! -s <c>/<b>.flag; test ! -e <d>/<b>.flag; test ! -e <b>.flag",
        ("<c>/<b>.flag",),
    ),
    Kind(
        "lost-device",
        3,
        (
            "<a>.log says which device was lost. Write only its name to <e>.txt.",
            "Find out from <a>.log what was lost, and put just that name into <e>.txt.",
            "Which device does <a>.log report as lost? <e>.txt should have its name and nothing else.",
        ),
        {"<a>.log": _LOG, "<b>.log": "10:00 <v> ready\n"},
        "awk '$3 == \"lost\" {print $2}' <a>.log > <e>.txt",
        'test "$(tr -d " \\n" < <e>.txt)" = <u>',
        ("<e>.txt",),
    ),
)

KINDS = (*ONE_COMMAND, *FEW_STEPS, *FIND_OUT)
