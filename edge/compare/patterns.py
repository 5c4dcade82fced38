"""Every sentence that a comparison prints, with the condition under which it is true.

Each is a `Pattern`: a text with places for values, and its condition. docs/sentences.md is made from this module and
from edge/report/patterns.py (scripts/sentences_page.py).
"""

import re
from dataclasses import dataclass

__all__ = ["Pattern", "patterns_of"]


@dataclass(frozen=True)
class Pattern:
    """A sentence with places for values, as `str.format` has them, and when it is true."""

    text: str
    when: str

    def __call__(self, **values: object) -> str:
        """The sentence with these values."""
        return self.text.format(**values)

    def matches(self, sentence: str) -> bool:
        """Whether `sentence` is this one, with any values."""
        return self._expression().fullmatch(sentence) is not None

    def _expression(self) -> re.Pattern[str]:
        parts = re.split(r"\{\w+\}", self.text)
        return re.compile(".+?".join(map(re.escape, parts)), re.DOTALL)


def patterns_of(module: dict[str, object]) -> dict[str, Pattern]:
    """The patterns among the names of a module, in its order."""
    return {name: value for name, value in module.items() if isinstance(value, Pattern)}


# A paired figure. `bounds`: the 95 % interval of its difference.
FOUND = Pattern(
    "A {word} of {size}.",
    "At least 6 tasks differ and the 95 % interval does not include 0. word: loss or gain; rise or fall for commands "
    "per step, where no direction is better.",
)
WORSE_RISE = Pattern(
    "Worse: a rise of {size}.", "The same, for a figure of which less is better, whose interval is above 0."
)
BETTER_FALL = Pattern(
    "Better: a fall of {size}.", "The same, for a figure of which less is better, whose interval is below 0."
)
NOT_FOUND = Pattern(
    "No {what} was detected. This comparison would have detected a {what} of more than {size} "
    "(80 % power, 5 % level).",
    "At least 6 tasks differ and the interval includes 0. In simulations with as many tasks and the differences seen, "
    "80 % of the intervals find a true loss of that size.",
)
NOT_FOUND_AT_ALL = Pattern(
    "No {what} was detected. With so few tasks, edge could miss even the largest possible {what}.",
    "The same, and no possible loss is found in 80 % of the simulations.",
)
NONE_POSSIBLE = Pattern(
    "The reference has {value}, so no {what} is possible.",
    "At least 6 tasks differ, the interval includes 0, and the reference already has the worst value.",
)
FEW_DIFFER = Pattern(
    "{differing} of {tasks} {verb}: too few for an interval, which needs {least}.", "1 to 5 tasks differ."
)
CANCEL = Pattern(
    "Steps differ, but their differences cancel in every task.", "Steps differ, but no task's mean does."
)
AT_MOST = Pattern(
    "At most {share} % of all such tasks differ (95 % confidence).",
    "Fewer than 6 tasks differ. With a larger share, so few of the tasks would differ with less than 5 % probability.",
)
NO_STEP = Pattern("No step differs.", "The figure is the same in every step.")
SAME_SIDES = Pattern("No step differs, because both sides are the same.", "Both files have the same content.")
NO_SUCH_STEPS = Pattern(
    "There are no such steps.", "No step counts for the figure: for example, no row completes."
)
MCNEMAR_DISAGREES = Pattern(
    "McNemar's test finds {what} ({p}), but it treats steps as independent.",
    "The test and the interval disagree at the 5 % level, for valid JSON or the first command.",
)
MCNEMAR = Pattern(
    "(McNemar: {theirs} right only in the reference, {ours} only in ours, {p}.)",
    "Valid JSON or the first command is right on only one side in some step.",
)

# A published figure.
NOT_PUBLISHED = Pattern("Not published.", "The reference's figure was not published.")
NOT_PAIRED = Pattern(
    "Not paired. The published {value} is {where} our interval ({span}).",
    "The reference has only published figures. where: inside or outside the 95 % interval of our figure alone.",
)
OWN_INTERVAL = Pattern(
    "Its own interval is {span}.", "The published figure is a percentage of a known number of steps."
)
OWN_UNKNOWN = Pattern("Its own interval is unknown.", "The spread of the published figure was not published.")
NO_OWN_INTERVAL = Pattern(
    "Not paired, and our steps give no interval.",
    "The reference has only published figures, and our steps are of one task.",
)

# How often both sides answer the same.
SAME_SHARE = Pattern(
    "{what} {share} % (95 % interval: {low} to {high})",
    "The steps are paired. what: same commands, same first command or same text of both answers.",
)
SAME_SHARES = Pattern("{shares} of the steps.", "The steps are paired. shares: those above.")
ONLY_TASKS = Pattern(
    "Only 1 task: its steps are not independent, so differences and means have no intervals.",
    "There is one task.",
)
FEW_TASKS = Pattern(
    "Only {tasks}: too few for the interval of a difference.", "There are 2 to 5 tasks, so 6 cannot differ."
)
ROUGH = Pattern(
    "Only {tasks}: the intervals over tasks are widened for so few, but they are still rough.",
    "There are 6 to 9 tasks.",
)
SAME_FILE = Pattern(
    "Both sides {are}: this compares nothing.",
    "are: are the same file, or have the same content.",
)
SAME_RUN = Pattern(
    "Both results have the same model, rows and settings: only another machine or chance can make a difference.",
    "The `run` of both results is equal.",
)
UNPAIRED = Pattern(
    "The reference is published figures{steps}; our result has {ours}. Published figures have no steps to pair, so "
    "there is no interval of a difference, no test and no list of steps that got worse.",
    "The reference has only published figures.",
)
POWER_LINE = Pattern(
    "80 % power, 5 % level: a true difference of that size is detected with 80 % probability at the 5 % level, if the "
    "tasks that differ do so as much as these, and one of four in the other direction.",
    "A figure has a detectable loss.",
)
MCNEMAR_LINE = Pattern(
    "McNemar's test treats all steps as independent, but steps of one task are not. So the verdict uses the interval, "
    "which is over tasks.",
    "A figure has McNemar's test.",
)
PUBLISHED_LINE = Pattern(
    "Intervals of percentages are Wilson's, for independent steps. They are too narrow if the steps of a task are "
    "alike. Our other intervals are a bootstrap over tasks. That a published figure is inside or outside our interval "
    "is not a test.",
    "The reference has only published figures.",
)
PUBLISHED_MARK = Pattern(
    "† published elsewhere, or computed from published figures. Everything else was measured here, or compares the "
    "two.",
    "The reference has only published figures.",
)

# What was compared.
PAIRED = Pattern(
    "Paired: {steps} of {tasks}. Not paired: {left_out}.",
    "The reference has steps. Counts of the steps that both sides have, and that only one side has.",
)
F1_BY_STEP = Pattern(
    "F1 by step: {better} better, {same} the same, {worse} worse.",
    "The steps are paired. Command F1 of our answer compared with the reference's answer.",
)
MORE_WORSE = Pattern(
    "{steps} got worse; the JSON output lists all of them.", "More steps got worse than are shown."
)
NO_CAUSES = Pattern(
    "No two of these results differ in exactly one thing, so edge cannot name the cause of a difference.",
    "No pair of the results differs in one thing alone.",
)
CAUSES = Pattern(
    "Each line compares two runs that differ in exactly one thing.", "A pair differs in one thing alone."
)

# What differs besides, and what is missing (notes).
SETTING = Pattern(
    "The runs differ: {name} is {theirs} in the reference, {ours} in ours.",
    "Both results record the setting, and the values differ.",
)
SETTING_UNNAMED = Pattern(
    "The runs may differ: {name} is {value} in {who}, and {other} does not name it.",
    "One result records the setting, and the other one does not. temperature and max_tokens always; others where the "
    "value is not the usual one.",
)
SOURCES = Pattern(
    "The runs are of different {what}: {source} is {theirs} in the reference, {ours} in ours.",
    "Both results record the source or its revision, and the values differ.",
)
MISNAMED = Pattern(
    "{whose}: {what} is named {name}, but its weights are {stated}, as the model file says.",
    "A name mentions another type than the one that edge read from the model file.",
)
SAME_MODEL = Pattern(
    "Both results are of the same model file (SHA-256 {digest}…).",
    "Both record the same SHA-256 and adapters.",
)
SHARED_MODEL = Pattern(
    "Of the same model file (SHA-256 {digest}…): {others}.", "Several results record the same SHA-256."
)
SHARD = Pattern(
    "{whose} is shard {index} of {count}: it has {steps} of {rows}. `edge join` puts the shards together.",
    "The result says that it is a shard. The sentence is in edge/replay/shards.py.",
)
ADAPTERS = Pattern(
    "The runs have different adapters: {theirs} in the reference, {ours} in ours.",
    "At least one result records adapters, and the other one records others or none.",
)
ADAPTERS_UNNAMED = Pattern(
    "Only {who} names adapters: {adapters}. {other} does not say whether it had any.",
    "One result records adapters, and the other one does not say that it had none.",
)
ROW_SETS = Pattern(
    "The row sets differ: {theirs} in the reference, {ours} in ours. edge compares the steps that both have.",
    "The two results have different numbers of steps.",
)
GRAMMAR = Pattern(
    "Only {who} was written with a grammar, as far as {other} says. The grammar alone can raise valid JSON and the "
    "figures that depend on it.",
    "One result says that a grammar or schema constrained it; the other one does not.",
)
UNFINISHED = Pattern(
    "{whose} is unfinished: it has {steps}.",
    "The result says `complete: false`, or a `total_input_steps` of more than its steps and not `complete: true`.",
)
PART_OF_ROWS = Pattern(
    "{whose} has {steps} of the {total} steps of its rows.",
    "The result says `complete: true`, and a `total_input_steps` of more than its steps.",
)
OTHER_STEPS = Pattern(
    "{whose} states figures of {stated}, but has {steps}. edge uses the figures of the steps that it has.",
    "The `steps` of the stored aggregate are not the number of steps in the file.",
)
ROWS_MISSING = Pattern(
    "{whose} has no prediction for {rows}; its figures leave them out.", "The result says `rows_missing`."
)
LEFT_OUT = Pattern(
    "{whose} left out {rows} that did not fit into its context.", "The result says `skipped_too_long`."
)
RESCORED = Pattern(
    "{whose}: {steps} {verb} scored by other rules. edge scored {them} again from {their} command lines by "
    "its own rules, in which no commands against no commands count 0.",
    "The figures of stored steps do not follow from their command lines.",
)
REREAD = Pattern(
    "{whose} states fields that do not follow from its answers or the numbers of its steps: {fields}. edge uses those "
    "that follow.",
    "A stated field of a step, such as valid_json or bucket, is not the one that edge computes.",
)
SERVER_ERRORS = Pattern(
    "{whose}: {answers} {verb} of a server; {they} as 0.", "Steps have an error and no answer."
)
ERRORS_WITH_TEXT = Pattern(
    "{whose}: {answers} {verb} an error of a server and a text; edge scored the text.",
    "Steps have an error and an answer.",
)
CUT = Pattern(
    "{whose}: {cut} of {answers} {verb} cut at the token limit.",
    "Answers were closed at the budget or finished by length.",
)
CLOSED = Pattern(
    "The grammar closed {them} as valid JSON.", "The grammar closed each answer that ran out of tokens."
)
NOT_ELIGIBLE = Pattern(
    "{whose} is not rank-eligible: its prompts come from {status}.",
    "The result names a fallback or a mixture as the source of its prompts.",
)
SAYS_NOT_ELIGIBLE = Pattern(
    "{whose} says that it is not rank-eligible (template_status: {status}).",
    "The result says `rank_eligible: false`, and names no fallback or mixture.",
)
CHECKED_BY_ANSWERS = Pattern(
    "edge checked the rows by their reference answers only: {who} row hashes.",
    "A paired step lacks `row_sha256` on one side.",
)
CHECKED_BY_LENGTH = Pattern(
    "edge {checked}: {who} prompt hashes{why}.",
    "A paired step lacks `prompt_sha256` on one side. checked: by lengths where both sides have them, else not at all.",
)
OTHER_PROMPTS = Pattern(
    "{steps} of {all} {verb} different prompts.",
    "The prompts of paired steps differ because an option that changes prompts differs.",
)
OTHER_TOKENS = Pattern(
    "{steps} {verb} the same prompt text but a different number of tokens: the tokenizers differ, or one side added a "
    "token.",
    "The prompts of paired steps have equal hashes and other lengths.",
)
CAUSE_PAIR = Pattern(
    "{second} compared with {first}.", "A pair of --causes. The difference is the second minus the first."
)
BY_NAME = Pattern(
    "Check that {first} and {second} come from one checkpoint: edge could compare only their names.",
    "A pair of --causes is one model only by its names.",
)

# Two results of trials (edge trial), paired by task.
NO_TASK_DIFFERS = Pattern(
    "No task differs. {most}", "Both sides solve each task equally often. most: the share of all such tasks."
)
TRIALS_FEW = Pattern(
    "{differing} of {tasks} {verb}: too few for an interval, which needs {least}. {most}",
    "1 to 5 tasks are solved more often by one side.",
)
TRIALS_FOUND = Pattern(
    "A {word} of {points} points (95 % interval: {low} to {high}).",
    "At least 6 tasks differ and the 95 % interval of the difference does not include 0. word: loss or gain.",
)
NOTHING_TO_LOSE = Pattern(
    "The reference solves nothing, so no loss is possible. No gain was detected.",
    "The interval includes 0, and the reference solves no task.",
)
TRIALS_TOO_FEW = Pattern(
    "No difference was detected. With so few tasks, edge could miss even the largest possible loss.",
    "The interval includes 0, and no loss that the reference's share allows is found with 80 % power.",
)
TRIALS_NOT_FOUND = Pattern(
    "No difference was detected. This comparison would have detected a loss of more than {points} points (80 % power, "
    "5 % level).",
    "The interval includes 0, and such a loss is possible.",
)
TRIALS_MCNEMAR = Pattern(
    "McNemar's test finds {what} difference ({p}).",
    "One attempt at a task, and the test and the interval disagree at the 5 % level.",
)
TASKS_CHANGED = Pattern(
    "{tasks} left out, because the files differ: {names}.",
    "A task of one name has other files on both sides.",
)
ONE_SIDE_ONLY = Pattern(
    "{tasks} with trials that count on one side only: left out.",
    "A task was not tried, did not run or met a limit of wall time on one side.",
)
OTHER_SETTINGS = Pattern(
    "The runs have other settings too: {changes}.", "The runs record other settings than the model."
)
NOT_COUNTED = Pattern(
    "Left out of {side}: {refused} not runnable here, {not_run} that could not run, {wall} that met a limit of wall "
    "time.",
    "A side has such tasks or trials.",
)
SAME_SCREENS = Pattern(
    "The same model and settings: every screen of every trial is the same.",
    "Both runs record the same model and settings, and what the model was shown is the same.",
)
OTHER_SCREENS = Pattern(
    "The same model and settings; screens differ in {trials}: {names}.",
    "The same, and what the model was shown differs in some trial.",
)
