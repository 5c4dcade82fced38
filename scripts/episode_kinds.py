"""The kinds of task from which scripts/episodes.py makes episodes: wordings, turns and terminal output.

`[a|b]` is a choice. `<file1>` is a placeholder that keeps its value through the episode. A flow is the list of an
episode's turns: (analysis, plan, commands, what the terminal prints after them).
"""

from dataclasses import dataclass

Step = tuple[str, str, list[str], str]


@dataclass(frozen=True)
class Kind:
    """One kind of task: wordings for training, held-out wordings, and its possible flows."""

    name: str
    say: list[str]
    unseen: list[str]
    flows: list[list[Step]]


WORDS = """account alarm alpha archive asset audit backup badge basic batch beta board bridge budget build bundle cache camera
catalog chart city client cloud color config core counter daily data delta demo deploy device draft driver engine event
export feed field filter final fleet form game garden gate graph green group guide history image import index input invoice
item job journal kernel label layer ledger library light list local lock main map market matrix media member menu merge
message metric mirror mobile model module monitor night notes object office old order output owner packet page panel parser
patch path payment photo pilot pixel plan player pocket point policy portal price printer project proxy public queue radio
record region relay release remote render report reset result river robot roster route sample scan scene school score script
search sensor server session shop signal site sketch small source spare stage station status stock storage store stream
street studio summary supply switch system table target task team temp tenant theme ticket timer token tools tower trace
track trade train travel tree trend update upload user value vector vendor video view visit voice wallet weather web week
widget window winter worker yard zone""".split()

NOT_FOUND = "No such file or directory"

KINDS = [
    Kind(
        "list-here",
        [
            "[Inspect|Check|Look at|Examine] the current directory and [list|show|print] [the |all |]Python files.",
            "[List|Show|Find] [the |all |]Python files [here|in the current directory|in this folder].",
        ],
        ["Which Python files are in the current directory?"],
        [
            [
                (
                    "I need to see this directory.",
                    "List it, then find Python files.",
                    ["ls -la", "find . -name '*.py'"],
                    "./<py1>",
                )
            ]
        ],
    ),
    Kind(
        "list-kind",
        [
            "[List|Show|Find|Print] [all |every |the |][log|log] files [in|under|inside] <dir1>.",
            "[Find|List|Show] files ending in .log [in|under|inside] [the directory |the folder |]<dir1>.",
        ],
        ["Which log files are inside <dir1>?", "I need every file ending in .log from <dir1>."],
        [
            [
                (
                    "I need the log files in <dir1>.",
                    "Find them by name.",
                    ["find <dir1> -name '*.log'"],
                    "<dir1>/<log1>",
                )
            ]
        ],
    ),
    Kind(
        "list-dir",
        [
            "[List|Show|Print] [the contents of|what is in|everything in|all files in] [the directory |the folder |]<dir1>.",
            "[Look|Look around] [in|inside] [the directory |the folder |]<dir1>.",
        ],
        ["What is in the folder <dir1>?", "Show me everything inside <dir1>."],
        [
            [("I need to see <dir1>.", "List it.", ["ls -la <dir1>"], "<txt1>\n<py1>")],
            [
                (
                    "I need to see <dir1>.",
                    "List it.",
                    ["ls -la <dir1>"],
                    f"ls: cannot access '<dir1>': {NOT_FOUND}",
                ),
                ("<dir1> is not here.", "Search for it.", ["find / -type d -name <dir1>"], "/srv/<dir1>"),
            ],
        ],
    ),
    Kind(
        "search",
        [
            "[Search|Look] for <word1> in [all files of |all files under |the folder |]<dir1>.",
            "[Find|Show|List] [every line|all lines|where files] with <word1> [in|under] <dir1>.",
            "[Find|Search] the text <word1> in the files of <dir1>.",
        ],
        ["Where does <word1> appear under <dir1>?", "Look in <dir1> for the text <word1>."],
        [
            [
                (
                    "I need lines with <word1> in <dir1>.",
                    "Search with grep.",
                    ["grep -rn '<word1>' <dir1>"],
                    "<dir1>/<py1>:<num1>:<word1>",
                )
            ]
        ],
    ),
    Kind(
        "count-match",
        [
            "[Count|Tell me|Print] how many lines of <log1> [contain|have|match] <word1>.",
            "[Count|Report] the lines with <word1> in <log1>.",
        ],
        ["How many times is <word1> in <log1>?"],
        [[("I need to count <word1>.", "Count with grep.", ["grep -c '<word1>' <log1>"], "<num1>")]],
    ),
    Kind(
        "read",
        [
            "[Read|Show|Print|Display] [the file |the contents of |]<txt1>.",
            "[Open|Show me] [the file |]<txt1>.",
        ],
        ["What does <txt1> say?", "Tell me what is in the file <txt1>."],
        [
            [("I need to read <txt1>.", "Print it.", ["cat <txt1>"], "<text1>")],
            [
                ("I need to read <txt1>.", "Print it.", ["cat <txt1>"], f"cat: <txt1>: {NOT_FOUND}"),
                ("<txt1> is not here.", "Search for it.", ["find . -name <txt1>"], "./<dir1>/<txt1>"),
                ("It is in <dir1>.", "Print it from there.", ["cat ./<dir1>/<txt1>"], "<text1>"),
            ],
        ],
    ),
    Kind(
        "head",
        [
            "[Show|Print|Read] the first <num1> lines of <csv1>.",
            "[Print|Show|Display] the top <num1> lines of [the file |]<csv1>.",
        ],
        ["I need the first <num1> lines from <csv1>."],
        [[("I need the top of <csv1>.", "Use head.", ["head -n <num1> <csv1>"], "<text1>")]],
    ),
    Kind(
        "tail",
        [
            "[Show|Print|Read] the last <num1> lines of <log1>.",
            "[Print|Show|Display] the end of [the file |]<log1>, <num1> lines.",
        ],
        ["What are the last <num1> lines in <log1>?"],
        [[("I need the end of <log1>.", "Use tail.", ["tail -n <num1> <log1>"], "<text1>")]],
    ),
    Kind(
        "count-lines",
        [
            "[Count|Print|Report] [the lines|the number of lines] [of|in] <csv1>.",
            "[Tell me|Print] how many lines <csv1> has.",
        ],
        ["How many lines are in <csv1>?"],
        [[("I need the length of <csv1>.", "Count its lines.", ["wc -l <csv1>"], "<num1> <csv1>")]],
    ),
    Kind(
        "make-dir",
        [
            "[Create|Make|Add] [a|the|a new] [directory|folder] [named |called |]<path1>.",
            "[Create|Make] <path1> as a [directory|folder].",
        ],
        ["I need a new folder at <path1>."],
        [
            [
                ("I need the folder <path1>.", "Create it.", ["mkdir -p <path1>"], ""),
                ("The folder should exist.", "Check it.", ["ls -la <path1>"], "total 0"),
            ]
        ],
    ),
    Kind(
        "rename",
        [
            "[Rename|Move] [the file |]<txt1> to <txt2>.",
            "[Change the name of|Give a new name to] <txt1>: <txt2>.",
        ],
        ["The file <txt1> must be called <txt2>."],
        [
            [
                ("<txt1> must become <txt2>.", "Move it.", ["mv <txt1> <txt2>"], ""),
                ("It was moved.", "Check it.", ["ls -la <txt2>"], "<txt2>"),
            ]
        ],
    ),
    Kind(
        "copy",
        [
            "[Copy|Back up] [the file |]<py1> [to|into] [the folder |]<dir1>.",
            "[Put|Make] a copy of <py1> in [the folder |]<dir1>.",
        ],
        ["I need <py1> in the folder <dir1> as well."],
        [
            [("<py1> must be in <dir1>.", "Copy it.", ["cp <py1> <dir1>/"], "")],
            [
                (
                    "<py1> must be in <dir1>.",
                    "Copy it.",
                    ["cp <py1> <dir1>/"],
                    "cp: cannot create regular file '<dir1>/': Not a directory",
                ),
                (
                    "<dir1> does not exist.",
                    "Create it and copy again.",
                    ["mkdir -p <dir1>", "cp <py1> <dir1>/"],
                    "",
                ),
            ],
        ],
    ),
    Kind(
        "remove",
        [
            "[Delete|Remove|Erase] [the file |]<log1>.",
            "[Delete|Remove] <log1> [from this folder|from here|for good].",
        ],
        ["The file <log1> must go."],
        [
            [
                ("<log1> must go.", "Remove it.", ["rm <log1>"], ""),
                ("It was removed.", "Check the folder.", ["ls"], "<txt1>"),
            ]
        ],
    ),
    Kind(
        "run-python",
        [
            "[Run|Start|Execute] [the script |the Python script |]<py1>.",
            "[Run|Start] <py1> [with Python|with Python 3].",
        ],
        ["Please start the Python program <py1>."],
        [
            [("I need to run <py1>.", "Start it with Python.", ["python3 <py1>"], "<text1>")],
            [
                (
                    "I need to run <py1>.",
                    "Start it with Python.",
                    ["python3 <py1>"],
                    "ModuleNotFoundError: No module named '<pkg1>'",
                ),
                (
                    "The module <pkg1> is missing.",
                    "Install it and run again.",
                    ["pip install <pkg1>", "python3 <py1>"],
                    "<text1>",
                ),
            ],
            [
                ("I need to run <py1>.", "Start it with Python.", ["python3 <py1>"], "still running"),
                ("It is still running.", "Wait for it.", [""], "<text1>"),
            ],
        ],
    ),
    Kind(
        "pytest",
        [
            "[Run|Start|Execute] the tests in <test1>.",
            "[Run|Start] pytest [on|for] [the file |]<test1>.",
            "[Test|Check] the code with <test1>.",
        ],
        ["Do the tests in <test1> pass?"],
        [
            [
                (
                    "I need the tests of <test1>.",
                    "Run pytest.",
                    ["python -m pytest -q <test1>"],
                    "<num1> passed",
                )
            ],
            [
                (
                    "I need the tests of <test1>.",
                    "Run pytest.",
                    ["python -m pytest -q <test1>"],
                    "FAILED <test1>: NameError: name '<word1>' in <py1>",
                ),
                (
                    "The name <word1> fails.",
                    "Look for it in <py1>.",
                    ["grep -n '<word1>' <py1>"],
                    "<num1>: <word1>",
                ),
            ],
        ],
    ),
    Kind(
        "git-status",
        [
            "[Show|Print|Check] the git status [of <dir1>|in <dir1>|for <dir1>].",
            "[Show|Check] what changed in [the repository |]<dir1>.",
        ],
        ["What is the git status in <dir1>?"],
        [[("I need the state of <dir1>.", "Ask git.", ["cd <dir1>", "git status"], "modified: <py1>")]],
    ),
    Kind(
        "git-commit",
        [
            "[Commit|Save] [the file |]<py1> [with the message|with message|as] '<text1>'.",
            "[Add|Stage] <py1> and commit it with the message '<text1>'.",
        ],
        ["Make a commit of <py1> that says '<text1>'."],
        [
            [
                (
                    "<py1> must be committed.",
                    "Add and commit it.",
                    ["git add <py1>", "git commit -m '<text1>'"],
                    "<hash1> <text1>",
                ),
                ("The commit is made.", "Check the log.", ["git log -n 1"], "<hash1>"),
            ],
            [
                (
                    "<py1> must be committed.",
                    "Add and commit it.",
                    ["git add <py1>", "git commit -m '<text1>'"],
                    "fatal: not a git repository",
                ),
                (
                    "There is no repository.",
                    "Create it and commit again.",
                    ["git init", "git add <py1>", "git commit -m '<text1>'"],
                    "<hash1> <text1>",
                ),
            ],
        ],
    ),
    Kind(
        "git-branch",
        [
            "[Create|Make|Start] [a|the|a new] git branch [named |called |]<branch1>.",
            "[Switch|Change] to a new branch [named |called |]<branch1>.",
        ],
        ["I need a new git branch, <branch1>."],
        [
            [
                (
                    "I need the branch <branch1>.",
                    "Create it.",
                    ["git checkout -b <branch1>"],
                    "Switched to a new branch '<branch1>'",
                )
            ],
            [
                (
                    "I need the branch <branch1>.",
                    "Create it.",
                    ["git checkout -b <branch1>"],
                    "fatal: a branch named '<branch1>' already exists",
                ),
                (
                    "<branch1> exists.",
                    "Switch to it.",
                    ["git checkout <branch1>"],
                    "Switched to branch '<branch1>'",
                ),
            ],
        ],
    ),
    Kind(
        "git-show",
        [
            "[Show|Print|Display] the [last|latest] <num1> commits [of|for] <py1>.",
            "[Print|Show] the git log of <py1>, <num1> [entries|commits].",
        ],
        ["What were the last <num1> commits for <py1>?"],
        [
            [
                (
                    "I need the log of <py1>.",
                    "Ask git.",
                    ["git log --oneline -n <num1> <py1>"],
                    "<hash1> <text1>",
                ),
                ("The latest is <hash1>.", "Show it.", ["git show <hash1>"], "<text1>"),
            ]
        ],
    ),
    Kind(
        "tar-make",
        [
            "[Create|Make] [an archive |the archive |a tar archive |]<tar1> [of|from|with] [the folder |]<dir1>.",
            "[Pack|Archive|Compress] [the folder |]<dir1> [into|as] <tar1>.",
        ],
        ["I need the folder <dir1> packed as <tar1>."],
        [
            [
                ("<dir1> goes into <tar1>.", "Pack it with tar.", ["tar -czf <tar1> <dir1>"], ""),
                ("The archive is made.", "List it.", ["tar -tzf <tar1>"], "<dir1>/<txt1>"),
            ]
        ],
    ),
    Kind(
        "tar-open",
        [
            "[Extract|Unpack|Open] [the archive |]<tar1> [into|to|in] [the folder |]<dir1>.",
            "[Unpack|Extract] <tar1> so that its files are in <dir1>.",
        ],
        ["Get the files of <tar1> into <dir1>."],
        [
            [
                (
                    "<tar1> goes into <dir1>.",
                    "Make the folder and unpack.",
                    ["mkdir -p <dir1>", "tar -xzf <tar1> -C <dir1>"],
                    "",
                )
            ]
        ],
    ),
    Kind(
        "replace",
        [
            "[Replace|Change] [the word |the text |]<word1> [with|to|by] <word2> in [the file |]<cfg1>.",
            "In <cfg1>, [replace|change] [every |all |]<word1> [to|with] <word2>.",
        ],
        ["The file <cfg1> must say <word2>, not <word1>.", "Put <word2> for <word1> in <cfg1>."],
        [
            [
                (
                    "<word1> must become <word2>.",
                    "Edit with sed.",
                    ["sed -i 's/<word1>/<word2>/g' <cfg1>"],
                    "",
                ),
                ("The edit is made.", "Check it.", ["grep -n '<word2>' <cfg1>"], "<num1>: <word2>"),
            ]
        ],
    ),
    Kind(
        "print-line",
        [
            "[Show|Print|Display] line <num1> of <py1>.",
            "[Print|Show] only line <num1> [of|from] [the file |]<py1>.",
        ],
        ["What is on line <num1> in <py1>?"],
        [[("I need line <num1>.", "Print it with sed.", ["sed -n '<num1>p' <py1>"], "<text1>")]],
    ),
    Kind(
        "find-process",
        [
            "[Find|Show|List] [the |all |]processes [named |called |]<proc1>.",
            "[Check|See] if <proc1> is running.",
        ],
        ["Is a process called <proc1> running?"],
        [
            [
                (
                    "I need processes of <proc1>.",
                    "Search the list.",
                    ["ps aux | grep <proc1>"],
                    "<user1> <pid1> <proc1>",
                )
            ]
        ],
    ),
    Kind(
        "kill",
        [
            "[Stop|Kill|End] the process [named |called |]<proc1>.",
            "[Stop|Kill] <proc1> [now|at once|by its process id].",
        ],
        ["The process <proc1> must be stopped."],
        [
            [
                ("I need the id of <proc1>.", "Ask pgrep.", ["pgrep <proc1>"], "<pid1>"),
                ("<proc1> has the id <pid1>.", "Stop it.", ["kill <pid1>"], ""),
            ]
        ],
    ),
    Kind(
        "interrupt",
        [
            "[Run|Start] <sh1> and stop it if it hangs.",
            "[Start|Run] the script <sh1>, [interrupt|stop] it when it hangs.",
        ],
        ["Please start <sh1>; if it hangs, stop it."],
        [
            [
                ("I need to run <sh1>.", "Start it.", ["./<sh1>"], "waiting for input ..."),
                ("It hangs.", "Interrupt it.", ["C-c"], "^C"),
            ],
            [
                ("I need to run <sh1>.", "Start it.", ["./<sh1>"], "bash: ./<sh1>: Permission denied"),
                ("<sh1> may not run.", "Allow it and run again.", ["chmod +x <sh1>", "./<sh1>"], "done"),
            ],
        ],
    ),
    Kind(
        "disk",
        [
            "[Show|Print|Check] [the size of|how big] [the folder |]<dir1>[| is].",
            "[Show|Report] the disk usage of [the folder |]<dir1>.",
        ],
        ["How much disk does <dir1> use?"],
        [
            [("I need the size of <dir1>.", "Use du.", ["du -sh <dir1>"], "<size1>M <dir1>")],
            [
                (
                    "I need the size of <dir1>.",
                    "Use du.",
                    ["du -sh <dir1>"],
                    "du: cannot read directory '<dir1>': Permission denied",
                ),
                ("<dir1> may not be read.", "Try it as root.", ["sudo du -sh <dir1>"], "<size1>M <dir1>"),
            ],
        ],
    ),
    Kind(
        "disk-free",
        [
            "[Show|Print|Check] the free disk space [of|on|for] /<dir1>.",
            "[Report|Show] how much disk is free [on|for] /<dir1>.",
        ],
        ["How much disk is free at /<dir1>?"],
        [[("I need the free space.", "Use df.", ["df -h /<dir1>"], "/dev/sda1 <size1>G /<dir1>")]],
    ),
    Kind(
        "big-files",
        [
            "[Find|List|Show] files [larger|bigger] than <size1> MB [in|under] <dir1>.",
            "[List|Find] [all |every ][file|files] over <size1> MB [in|under] <dir1>.",
        ],
        ["Which files in <dir1> are over <size1> MB?"],
        [
            [
                (
                    "I need files over <size1> MB.",
                    "Find them by size.",
                    ["find <dir1> -type f -size +<size1>M"],
                    "<dir1>/<tar1>",
                )
            ]
        ],
    ),
    Kind(
        "write",
        [
            "[Write|Put] '<text1>' [into|in] [the file |a file |]<txt1>.",
            "[Create|Make] [the file |a file |]<txt1> [containing|with the text] '<text1>'.",
        ],
        ["The file <txt1> must contain '<text1>'."],
        [
            [
                ("<txt1> needs the text.", "Write it.", ["echo '<text1>' > <txt1>"], ""),
                ("It is written.", "Check it.", ["cat <txt1>"], "<text1>"),
            ]
        ],
    ),
    Kind(
        "append",
        [
            "[Append|Add] '<text1>' to [the end of |the file |]<md1>.",
            "[Add|Put] the line '<text1>' at the end of <md1>.",
        ],
        ["<md1> needs one more line: '<text1>'."],
        [[("<md1> needs one more line.", "Append it.", ["echo '<text1>' >> <md1>"], "")]],
    ),
    Kind(
        "export",
        [
            "[Set|Export] [the variable |the environment variable |]<var1> [to|as] <word1>.",
            "[Set|Give] <var1> the value <word1> in the environment.",
        ],
        ["The variable <var1> must be <word1>."],
        [
            [
                ("<var1> must be set.", "Export it.", ["export <var1>=<word1>"], ""),
                ("It is set.", "Check it.", ["echo $<var1>"], "<word1>"),
            ]
        ],
    ),
    Kind(
        "http",
        [
            "[Get|Fetch|Request] /<word1> from [the local server|localhost] on port <port1>.",
            "[Ask|Query] the local server on port <port1> for /<word1>.",
        ],
        ["What does port <port1> of the local server say at /<word1>?"],
        [
            [
                (
                    "I need /<word1> from port <port1>.",
                    "Use curl.",
                    ["curl -s http://localhost:<port1>/<word1>"],
                    "<text1>",
                )
            ],
            [
                (
                    "I need /<word1> from port <port1>.",
                    "Use curl.",
                    ["curl -s http://localhost:<port1>/<word1>"],
                    "curl: (7) Failed to connect to localhost port <port1>",
                ),
                ("Nothing answers on port <port1>.", "See who listens.", ["ss -ltnp | grep <port1>"], ""),
            ],
        ],
    ),
    Kind(
        "port",
        [
            "[Find|Show|Check] [which process|what|who] [uses|listens on] port <port1>.",
            "[Check|See] if port <port1> is [free|in use].",
        ],
        ["Who is on port <port1>?"],
        [
            [
                (
                    "I need the user of port <port1>.",
                    "Search the sockets.",
                    ["ss -ltnp | grep <port1>"],
                    "LISTEN <port1> <proc1>",
                )
            ]
        ],
    ),
    Kind(
        "sort-count",
        [
            "[Sort|Order] <csv1> and count [equal|repeated] lines.",
            "[Count|Show] how often each line of <csv1> [occurs|is there].",
        ],
        ["How often does each line occur in <csv1>?"],
        [[("I need counts of equal lines.", "Sort and count.", ["sort <csv1> | uniq -c"], "<num1> <text1>")]],
    ),
    Kind(
        "column",
        [
            "[Show|Print|Extract] column <num1> of <csv1>.",
            "[Print|Show] only [field|column] <num1> [of|from] [the file |]<csv1>.",
        ],
        ["I need field <num1> from <csv1>."],
        [[("I need column <num1>.", "Cut it out.", ["cut -d, -f<num1> <csv1>"], "<text1>")]],
    ),
    Kind(
        "link",
        [
            "[Create|Make|Add] a [link|symbolic link] [named |called |]<link1> to <path1>.",
            "[Link|Point] <link1> to <path1>.",
        ],
        ["<link1> must be a link to <path1>."],
        [
            [
                ("<link1> must point to <path1>.", "Link it.", ["ln -s <path1> <link1>"], ""),
                ("The link is made.", "Check it.", ["ls -la <link1>"], "<link1> -> <path1>"),
            ]
        ],
    ),
    Kind(
        "json-key",
        [
            "[Check|Validate] that <json1> is valid JSON.",
            "[Print|Show] <json1> as [formatted|indented] JSON.",
        ],
        ["Is <json1> valid JSON?"],
        [[("I need to check <json1>.", "Use Python's JSON tool.", ["python3 -m json.tool <json1>"], "{}")]],
    ),
]
