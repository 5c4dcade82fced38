"""Episodes of the default model's training: a request, the model's answers, and what the terminal shows.

An episode is made from its number alone, so that training can resume anywhere. The commands run in a sandbox where an
answer follows their output. The messages come from the functions that `edge run` and `edge agent` use.
"""

import json
import random
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from judge import read_requests
from kinds import KEYS, Kind, Step
from values import Values
from world import run, screen

from edge.agent.wording import confirmation, observation
from edge.prompt import Message, task_messages
from edge.system.paths import EMBEDDED_NAME

CHOICE = re.compile(r"\[([^\[\]|]*\|[^\[\]]*)\]")
SLOW = re.compile(
    r"(sudo |\./|pip|python3? |git (clone|pull|push|fetch)|make|sleep|tar|zip|apt|npm|curl|wget|rsync|scp|ping|ssh)"
)
QUOTED = re.compile(r"(?<![\w'])'([^'\"`]+)'(?!\w)")
BY_NAME = re.compile(r"-name '?<dir|basename|-path '?<dir")  # there, a folder is a plain name
BEFORE = (
    "Please {}",
    "please {}",
    "Could you {}",
    "Can you {}",
    "Would you {}",
    "I need you to {}",
    "I need to {}",
    "I want to {}",
    "I want you to {}",
    "I'd like to {}",
    "I'd like you to {}",
    "I have to {}",
    "I am trying to {}",
    "Help me {}",
    "Help me to {}",
    "You should {}",
    "We need to {}",
    "We should {}",
    "Let's {}",
    "Go ahead and {}",
    "Now {}",
    "OK, now {}",
    "Next, {}",
    "First, {}",
    "Just {}",
    "Hi, please {}",
    "Hey, can you {}",
    "Can you please {}",
    "Could you please {}",
    "Can we {}",
    "Quickly {}",
    "How can I {}",
    "How do I {}",
    "How could I {}",
    "How do you {}",
    "Is there a way to {}",
    "Is it possible to {}",
    "What is the command to {}",
    "What's the best way to {}",
    "Your task is to {}",
    "The next thing is to {}",
    "It is time to {}",
)
ASKING = ("could", "can", "would", "hey, can", "how", "is there", "is it", "what")
AFTER = (
    "for me",
    "now",
    "please",
    "thanks",
    "and nothing else",
    "for the release",
    "because I have to report it",
    "before the meeting",
    "so that I can check it",
    "for my homework",
    "in the terminal",
    "for the ticket",
    "if you can",
    "right away",
    "as soon as possible",
    "on this machine",
    "for a colleague",
    "from the command line",
)
# What people say besides their request. It changes nothing.
ASIDES_BEFORE = (
    "I am new to Linux.",
    "I forgot the command.",
    "This is for a colleague.",
    "We go live today.",
    "I have an exam tomorrow.",
    "Quick question.",
    "I am preparing a demo.",
    "One more thing.",
    "I am in a hurry.",
    "The meeting starts soon.",
)
ASIDES_AFTER = (
    "Thanks!",
    "Thank you.",
    "That is all.",
    "It is urgent.",
    "Do nothing else.",
    "I need it today.",
    "One command is enough.",
    "You can use any tool.",
)
# The verbs with which an imperative begins: "Please", "Could you" and so on can stand before them.
VERBS = frozenset(
    """Abandon Abort Activate Add Allow Amend Append Apply Archive Arrange Ask Assign Attach Attempt Back Beautify
Become Begin Benchmark Bin Bind Blame Block Boot Bounce Branch Break Brief Bring Build Bump Bundle Burn
Calculate Call Cancel Capitalize Catch Change Check Checksum Chmod Choose Chop Chown Classify Clean Clear Clone
Close Collapse Collect Color Colour Combine Comment Commit Compare Compile Compose Compress Compute Concatenate
Configure Connect Consult Continue Control Convert Copy Correct Count Cover Create Crop Cut Deactivate Decode
Decompress Define Delete Deny Deploy Detach Detect Diagnose Diff Dig Disable Discard Disconnect Display Dispose
Divide Download Drag Draw Drop Dump Duplicate Echo Edit Empty Enable Encode End Enter Erase Estimate Evaluate
Examine Exchange Exclude Execute Exit Expand Explain Export Extend Extract Fetch Figure Fill Filter Find
Finish Fit Fix Flatten Flip Flush Fold Follow Force Forget Format Free Freeze Gather Generate Get Give Glue Go
Grab Grant Grep Group Gunzip Gzip Halt Hand Hash Help Hide Hold Hop Hunt Identify Ignore Import Include Indent
Inform Initialise Initialize Insert Inspect Install Interrupt Invert Isolate Join Jump Keep Kick Kill Label
Launch Lay Leave Let Lift Limit Link Lint List Load Locate Lock Log Look Lower Lowercase Make Map Mark Mask
Match Measure Merge Mirror Mix Modify Monitor Mount Move Name Note Notify Nuke Number Obtain Open Order Output
Overwrite Pack Pad Pass Paste Pause Peek Pick Pin Ping Pipe Place Point Pop Populate Post Prefix Prepare
Prepend Preview Print Process Profile Prohibit Promote Protect Prune Publish Pull Purge Push Put Query Quit
Quote Raise Randomize Rank Reach Read Rebase Reboot Recall Record Recover Redirect Reduce Reformat Refresh
Refuse Register Relabel Release Reload Relocate Remember Remove Rename Renew Renice Reorder Repeat Replace
Replay Reply Report Request Require Reread Rerun Reset Resolve Respond Restart Restore Resume Retrieve Retry
Return Reverse Revert Revoke Reword Rewrite Rotate Round Run Save Scan Schedule Search Secure See Select
Send Serve Set Share Shift Shorten Show Shred Shrink Shuffle Shut Sign Simplify Skip Sleep Slice Snapshot Sort
Specify Spell Split Squeeze Stack Stage Start Stash Step Stick Stitch Stop Store Stream Strip Submit Substitute
Sum Summarise Supply Suppress Surround Survey Suspend Swap Switch Sync Synchronize Tag Take Tally Tar Tell
Terminate Test Throw Tidy Trace Track Transfer Transform Transpose Trash Trigger Trim Truncate
Try Turn Type Unblock Uncommit Uncompress Undo Unfold Unfreeze Uninstall Unite Unlink Unlock Unmask Unmount
Unpack Unpin Unset Unstage Untar Untrack Unzip Update Upgrade Upload Uppercase Use Vacuum Validate Verify View
Visit Visualise Wait Wake Watch Whitelist Wipe Withdraw Work Wrap Write Zap Zip""".split()
)
DONE = (
    ("The output shows that it is done.", "Nothing is left to do."),
    ("The command ran without an error.", "Nothing is left to do."),
    ("The task is done.", "Nothing is left to do."),
)


@dataclass(frozen=True)
class Episode:
    """The messages of a conversation. The roles alternate after the system message; the last one is an answer."""

    kind: str
    messages: tuple[Message, ...]


def choose(wording: str, rng: random.Random) -> str:
    """One of the texts that a wording with `[a|b]` stands for."""
    while (match := CHOICE.search(wording)) is not None:
        wording = wording[: match.start()] + rng.choice(match[1].split("|")) + wording[match.end() :]
    return wording


def vary(text: str, rng: random.Random) -> str:
    """A wording as another person would write it: polite, with a reason, careless, with a typing error."""
    first = text.split(" ", 1)[0]
    if first in VERBS and text.endswith(".") and text.count(". ") == 0:
        body = text[0].lower() + text[1:-1]
        chance = rng.random()
        if chance < 0.27:
            before = rng.choice(BEFORE)
            asked = before.lower().startswith(ASKING)
            text = before.format(body) + ("?" if asked else ".")
        elif chance < 0.36:
            text = f"{text[:-1]} {rng.choice(AFTER)}."
        elif chance < 0.40:
            text = f"{text[:-1]}, {rng.choice(('please', 'thank you', 'would you'))}."
    chance = rng.random()
    if text.endswith((".", "?")) and chance < 0.05:
        text = (
            f"{rng.choice(ASIDES_BEFORE)} {text}" if chance < 0.03 else f"{text} {rng.choice(ASIDES_AFTER)}"
        )
    if rng.random() < 0.10 and not text.startswith("<"):
        text = text[0].lower() + text[1:]
    if rng.random() < 0.10 and text.endswith((".", "?")):
        text = text[:-1]
    if rng.random() < 0.06:
        text = _mistype(text, rng)
    return text


def request(kind: Kind, values: Values, rng: random.Random) -> str:
    """What the user writes: a wording of the kind with its names, and with other quotes or none."""
    while plain(text := _request(kind, values, rng)) in _held_out_requests():
        pass
    return text


def plain(text: str) -> str:
    """A request without what makes no difference: case, spaces, the sign at its end."""
    return " ".join(text.lower().split()).strip(".?!")


@cache
def _held_out_requests() -> frozenset[str]:
    return frozenset(plain(request.text) for request in read_requests())


def _request(kind: Kind, values: Values, rng: random.Random) -> str:
    text = values.fill(vary(choose(rng.choice(kind.say), rng), rng))
    quotes = rng.choices(("'", '"', "`", ""), (60, 25, 3, 12))[0]
    if not quotes and not all(re.fullmatch(r"\w[\w ]*\w", quoted) for quoted in QUOTED.findall(text)):
        return text
    return QUOTED.sub(lambda match: f"{quotes}{match[1]}{quotes}", text)


def _mistype(text: str, rng: random.Random) -> str:
    places = [match.span() for match in re.finditer(r"(?<![\w<./-])[a-z]{4,}(?![\w>./-])", text)]
    if not places:
        return text
    start, end = rng.choice(places)
    at = rng.randrange(start + 1, end - 1)
    changed = rng.choice((text[at + 1] + text[at], text[at + 1], text[at] * 2 + text[at + 1]))
    return text[:at] + changed + text[at + 2 :]


def answer(analysis: str, plan: str, commands: list[str], complete: bool) -> str:
    """An action as the JSON text that the model is trained to write."""
    typed = [{"keystrokes": keys, "duration": seconds} for keys, seconds in map(keystrokes, commands)]
    action = {"analysis": analysis, "plan": plan, "commands": typed, "task_complete": complete}
    return json.dumps(action, ensure_ascii=False)


def keystrokes(command: str) -> tuple[str, float]:
    """(keys, seconds to wait). A command gets a newline; keys are typed as they are."""
    if command in KEYS:
        return command, 0.5 if command else 5.0
    return command + "\n", 5.0 if SLOW.match(command) else 0.1


def make_episode(kinds: list[Kind], number: int, *, held: bool = False) -> Episode:
    """Episode `number`. `held`: with names that training never uses, and all kinds equally often.

    In training a kind comes as often as it has wordings: people ask for everyday work most, and those kinds have the
    most wordings.
    """
    rng = random.Random(f"{'held' if held else 'train'} {number}")
    kind = rng.choice(kinds) if held else rng.choices(kinds, [len(kind.say) for kind in kinds])[0]
    flow = rng.choice(kind.flows)
    user, host = (
        rng.choice(("dev", "user", "anna", "root", "me")),
        rng.choice(("box", "laptop", "host", "web1")),
    )
    prompt = f"{user}@{host}:{rng.choice(('~', '~/work', '/app'))}$ "
    form = rng.choices(("run", "screen", "listed", "agent", "chat"), (50, 8, 5, 27, 10))[0]
    if len(flow) > 1 and form != "agent":
        form = rng.choice((form, "agent", "agent"))
    values = Values(rng, held, anywhere=form in ("run", "screen") and not BY_NAME.search(str(kind.flows)))
    task = request(kind, values, rng)
    if form == "chat":
        return _chat(kinds, kind, values, flow, task, rng)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        needs_world = form == "listed" or (form == "agent" and any(step.output is None for step in flow))
        if needs_world:
            run(folder, values.fill(kind.world))
        before = None if form == "run" else prompt.rstrip()
        if form == "listed":
            before = f"{prompt}ls\n{screen(run(folder, 'ls -C')[1])}\n{prompt.rstrip()}".replace("\n\n", "\n")
        messages = task_messages(task, before)
        asked = False
        for number_of_turn, step in enumerate(flow):
            commands, complete, text = _turn(kind, flow, number_of_turn, values)
            messages.append({"role": "assistant", "content": text})
            if form != "agent":
                break  # the first answer is all that these forms see
            question = confirmation(EMBEDDED_NAME) if complete and not asked else ""
            asked = asked or complete
            messages.append(observation(_shown(folder, prompt, commands, step, values), (), question))
        if form == "agent":
            text = answer(*rng.choice(DONE), [], True)
            messages.append({"role": "assistant", "content": text})
    return Episode(kind.name, tuple(messages))


def _turn(kind: Kind, flow: tuple[Step, ...], number: int, values: Values) -> tuple[list[str], bool, str]:
    """Turn `number` of a flow: its commands, whether the task is then complete, and the answer's text."""
    step, last = flow[number], number == len(flow) - 1
    # No command at the end is a refusal; before another turn it is waiting.
    commands = [values.fill(command) for command in step.commands if command or not last]
    # Nobody can foresee an error: such a first answer looks like that of a request which succeeds.
    complete = last or (kind.fails and number == 0)
    return commands, complete, answer(values.fill(step.analysis), values.fill(step.plan), commands, complete)


def _shown(folder: Path, prompt: str, commands: list[str], step: Step, values: Values) -> str:
    """What the terminal shows after the commands, under the heading of `edge agent`."""
    lines = []
    for command in commands:
        if command not in KEYS:
            lines.append(prompt + command)
            if step.output is None:
                lines.append(screen(run(folder, command)[1]))
    if step.output is not None:
        lines.append(values.fill(step.output))
    shown = "\n".join([line for line in lines if line] + [prompt.rstrip()])
    return f"New Terminal Output:\n{shown}"


def _chat(
    kinds: list[Kind], kind: Kind, values: Values, flow: tuple[Step, ...], task: str, rng: random.Random
) -> Episode:
    """Two requests after each other, as in `edge chat`: the second does not wait for the first one's output."""
    messages = task_messages(task)
    for turn in range(2):
        if turn:
            kind = rng.choice(kinds)
            flow = rng.choice(kind.flows)
            task = request(kind, values, rng)
            messages.append({"role": "user", "content": task})
        messages.append({"role": "assistant", "content": _turn(kind, flow, 0, values)[2]})
    return Episode(kind.name, tuple(messages))
