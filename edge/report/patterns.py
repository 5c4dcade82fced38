"""Every sentence that a report, a model card or the choice of a file prints, and when it is true.

The sentences of comparisons are in edge/compare/patterns.py. docs/sentences.md is made from both.
"""

from edge.compare.patterns import Pattern

# The choice of a file (edge sweep --budget, --max-loss).
NOTHING_FITS = Pattern(
    "No file fits into {budget}. The smallest file is {smallest}.", "Each file is larger than the budget."
)
SURE = Pattern(
    "{file} is the smallest file{fits} that is 95 % sure to lose at most {points} points of score.",
    "The upper bound of its loss, that of the 95 % interval over tasks, is at most so many points. At least 6 tasks "
    "differ. No smaller file that fits has such a bound.",
)
NONE_SURE = Pattern(
    "No file{fits} is 95 % sure to lose at most {points} points of score, so none is chosen.",
    "No file that fits has an interval whose bound is at most so many points of loss.",
)
NEAREST_BOUND = Pattern(
    "The lowest bound is that of {file}: a loss of up to {high} points.",
    "The same, and some file has an interval.",
)
NO_BOUND = Pattern(
    "Too few tasks differ for a bound of: {files}.",
    "The same, and fewer than 6 tasks of these files differ from the base. Equal answers can then be chance.",
)
SURE_ADVICE = Pattern(
    "Use rows of more tasks, or choose by size and KL divergence with --budget.", "No file is sure."
)
LOWEST_KL = Pattern(
    "{file} has the lowest mean KL divergence from the unquantized model of any file{fits}: {kl} nats per token.",
    "KL was measured for each file that fits.",
)
BEST_SCORE = Pattern(
    "{file} has the best score of any file{fits}: {score}.", "KL was not measured for each file that fits."
)
DIFFERENCE = Pattern(
    "Its score differs by {change} points from the base's (95 %: {low} to {high}).",
    "At least 6 tasks differ. A negative number is a loss.",
)
DIFFERENCE_ALONE = Pattern(
    "Its score differs by {change} points from the base's; too few tasks differ for an interval.",
    "Fewer than 6 tasks differ. A negative number is a loss.",
)

# The beginning of a page.
NO_REFERENCE = Pattern(
    "These are results without a reference, so they cannot show the cost of quantization.",
    "Nothing was compared.",
)
SOLVED = Pattern(
    "In a sandbox, {reference} solved {own} tasks; {files}.",
    "Trials of the reference and of some file are given.",
)
PUBLISHED = Pattern(
    "On the 100-point score, these files reached {scores}; {reference} published {score}, on steps that edge cannot "
    "pair with these.",
    "The reference has only published figures.",
)
SAME = Pattern(
    "The files proposed the same commands as {reference} in {shares} of the steps.",
    "The steps are paired, and the size of some file or of the reference is unknown.",
)
SPACE = Pattern(
    "{file} takes {space} % of the space of {reference}, and proposed the same commands in {same} of the steps.",
    "The steps of one file are paired, and both sizes are known.",
)
SPACES = Pattern(
    "{first}, the largest file, takes {space} % of the space of {reference} and proposed the same commands in {same} "
    "of the steps; {last}, the smallest, takes {last_space} % and proposed the same commands in {last_same}.",
    "The steps of several files are paired, and all sizes are known.",
)
EXPERT = Pattern(
    "Compared with {reference} on {pairs}: {clauses}.", "The steps are paired. The clauses follow here."
)
LOST = Pattern(
    "{file} lost {points} points of score ({bounds})", "The 95 % interval of the difference is below 0."
)
GAINED = Pattern(
    "{file} gained {points} points of score ({bounds})", "The 95 % interval of the difference is above 0."
)
UNDETECTED_UP_TO = Pattern(
    "no loss of score was detected in {files} (a loss of more than {points} points would have been detected with 80 % "
    "power)",
    "At least 6 tasks of each of these files differ, and the interval includes 0. points: the range of their "
    "detectable losses.",
)
UNDETECTED = Pattern(
    "no loss of score was detected in {files}",
    "The same, and no loss would be detected with 80 % power.",
)
NO_OTHER_SCORE = Pattern("no step of {files} has another score", "The score of each step is the reference's.")
FEW = Pattern(
    "too few tasks differ in {files} to say whether the score changed",
    "1 to 5 tasks of each of these files differ.",
)
UNPAIRED_SCORE = Pattern(
    "score of {file}: {sentence}",
    "The reference has only published figures. sentence: that of the comparison.",
)
DISTANCE = Pattern(
    "the mean KL divergence from {base} is {means} nats per token",
    "KL was measured against another model. means: of the nearest file, and of the farthest.",
)
FEW_NOTE = Pattern(
    "Where few tasks differ, the score says little. More tasks, the commands and the KL divergence say more.",
    "Fewer than 6 tasks of some file differ.",
)
BESIDES = Pattern(
    "Besides the model file, {what} differs, so that the differences are not those of quantization alone.",
    "Both sides record other engines, or only one side had a grammar.",
)
SCOPE_NONE = Pattern("{results} of {steps} steps each; edge compared nothing.", "Nothing was compared.")
SCOPE_PUBLISHED = Pattern(
    "{files} compared with the published figures of {reference}. Without the steps of {reference}, edge cannot pair "
    "steps.",
    "The reference has only published figures.",
)
SCOPE = Pattern("{files} compared with {reference}, step by step, on {pairs}.", "The steps are paired.")
SCOPE_OTHERS = Pattern(
    "{runs} of these files, made in another way, are under Other runs.",
    "Some results differ from the reference in more than their file, or are another run of a file.",
)
NO_DEFAULT_REFERENCE = Pattern(
    "No reference was given and {why}, so edge compared nothing. Give one with --reference.",
    "Several results are given without --reference, and not exactly one is unquantized.",
)
