"""Every sentence that a report, a model card or the choice of a file prints, and when it is true.

The sentences of comparisons are in edge/compare/patterns.py. docs/sentences.md is made from both.
"""

from edge.compare.patterns import Pattern

# The choice of a file (edge sweep --budget, --max-loss).
NOTHING_FITS = Pattern(
    "No file fits into {budget}. The smallest file is {smallest}.", "Each file is larger than the budget."
)
SURE = Pattern(
    "{file} is the smallest file{fits} that is 95 % sure to lose at most {points} of score.",
    "The upper bound of its loss, from the 95 % interval over tasks, is at most {points}. At least 6 tasks "
    "differ. No smaller file that fits has such a bound.",
)
NONE_SURE = Pattern(
    "No file{fits} is 95 % sure to lose at most {points} of score, so none is chosen.",
    "No file that fits has an interval whose bound is a loss of at most {points}.",
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
    "{these} without a reference, so {they} cannot show the cost of quantization.",
    "Nothing was compared, and no reference was given or found.",
)
NO_STEPS = Pattern(
    "{files} {verb} figures but no steps, so that edge cannot compare {them} with {reference}.",
    "A reference with steps is given, and some result has no steps.",
)
NOTHING_PAIRED = Pattern(
    "No result has steps that edge can compare with those of {reference}.",
    "A reference with steps is given, and no other result has steps.",
)
SOLVED = Pattern(
    "In a sandbox, {reference} solved {own}; {files}.",
    "Trials of the reference and of some file on the same tasks are given. Each share has its 95 % interval. With "
    "several attempts at a task, the numbers count trials, else tasks.",
)
SOLVED_ALONE = Pattern(
    "Solved in a sandbox: {files}.",
    "Trials of some file are given, and none of the reference on the same tasks.",
)
PUBLISHED = Pattern(
    "On the 100-point score, {these} reached {scores}; {reference} published {score}, on steps that edge cannot pair "
    "with {their} steps.",
    "The reference has only published figures.",
)
SAME = Pattern(
    "The files proposed the same commands as {reference} in {shares} of the steps.",
    "The steps are paired, and the size of some file or of the reference is unknown.",
)
SAME_ONE = Pattern(
    "{file} proposed the same commands as {reference} in {same} of the steps.", "The same, for one file."
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
EXPERT_PUBLISHED = Pattern(
    "Compared with the published figures of {reference}: {clauses}.",
    "The reference has only published figures. The clauses follow here.",
)
EXPERT_ALONE = Pattern("Without a comparison: {clauses}.", "Nothing was compared, but KL was measured.")
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
    "Fewer than 6 tasks of each of these files differ, and some step does.",
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
    "Besides the model file, {what} {verb}, so that the differences are not those of quantization alone.",
    "Both sides record other engines, settings, adapters or checkpoints, or that only one had a grammar.",
)
SAME_MODEL = Pattern(
    "{file} and {reference} are of the same model file: their differences are not those of quantization.",
    "Both results record the same SHA-256 and adapters.",
)
OTHER_STEPS = Pattern(
    "{file} and {reference} do not have the same steps: {ours} only in {file}, {theirs} only in {reference}. Scores "
    "are over all steps of a file, differences over the shared ones.",
    "The steps are paired, and one side has steps that the other one lacks.",
)
SCOPE_NONE = Pattern("{results} of {steps}; edge compared nothing.", "Nothing was compared.")
SCOPE_PUBLISHED = Pattern(
    "{files} compared with the published figures of {reference}. Without the steps of {reference}, edge cannot pair "
    "steps.",
    "The reference has only published figures.",
)
SCOPE = Pattern("{files} compared with {reference}, step by step, on {pairs}.", "The steps are paired.")
SCOPE_OTHERS = Pattern(
    "{runs} of these files, made in another way, {verb} under Other runs.",
    "Some results differ from the reference in more than their file, or are another run of a file.",
)
NO_DEFAULT_REFERENCE = Pattern(
    "No reference was given and {why}, so edge compared nothing. Give one with --reference.",
    "Several results are given without --reference, and not exactly one is unquantized.",
)
SHORT_PUBLISHED = Pattern(
    "† Published figures, not measured by edge.", "The short form has figures that edge did not measure."
)
SHORT_TABLE = Pattern(
    "Intervals are 95 %, over whole tasks; a difference has one if at least 6 tasks differ. KL is the divergence from "
    "the base model, in nats per token. Tokens/s is answer tokens divided by the time of the whole run, which includes "
    "reading the prompts, on one machine.",
    "Always, under the table of the short form.",
)

# The trials of a report (edge trial). The sentences about a difference are those of edge/compare/patterns.py.
TRIALS_UNMATCHED = Pattern(
    "No result here is about the model of these trials: {files}.",
    "The SHA-256 of the model file, or an adapter, of trials is that of no given result.",
)
TRIALS_OTHER_TASKS = Pattern(
    "{file} was tried on other tasks than {reference}, so the shares do not compare.",
    "Some task, or the files of some task, are not the same in both.",
)
PREDICT_ONE = Pattern(
    "One file cannot show whether the score predicts the solved share.",
    "One file has a score and trials. Files on other tasks than the reference's do not count.",
)
PREDICT_TWO = Pattern(
    "Two files cannot show whether the score predicts the solved share: any two points lie on a line.",
    "The same, for two files.",
)
PREDICT_FLAT = Pattern(
    "All {count} files have the same {what}, so they cannot show whether the score predicts the solved share.",
    "At least three files, and all their scores or all their solved shares are equal. what: the equal figure.",
)
PREDICT_FEW = Pattern(
    "{count} files are too few to show whether the score predicts the solved share: their rank correlation is {rho}, "
    "and even a perfect one has p = {least}.",
    "Three or four files. The smallest p of the two-sided permutation test is 2 divided by the number of orders.",
)
PREDICTS = Pattern(
    "Over these {count} files, a higher score goes with a {direction} solved share (rank correlation {rho}, {p}).",
    "At least five files, and p of the permutation test of Spearman's rank correlation is below 0.05. It treats files "
    "as independent.",
)
PREDICTS_NOT = Pattern(
    "Over these {count} files, no relation of score and solved share was detected (rank correlation {rho}, {p}). With "
    "so few files, only a strong one would be.",
    "At least five files, and p is 0.05 or more.",
)

# The check of a page (edge report --verify).
VERIFIED = Pattern(
    "{page}: is the page of these {files}: all {texts} texts with figures follow from them",
    "Each file has the SHA-256 that the page names, and the page made again from them has the same texts and "
    "attributes.",
)
NOT_VERIFIED = Pattern(
    "{page}: is not the page of these files: {faults}", "There is a fault. Each is on a separate line."
)
MISSING = Pattern(
    "{name}: is missing: the page was made from it (SHA-256 {digest})",
    "No given file has this SHA-256, and none has this name.",
)
CHANGED = Pattern(
    "{name}: was changed: its SHA-256 is {digest}, and the page names {wanted}",
    "A file of this name is given, with another SHA-256.",
)
NOT_OF_PAGE = Pattern("{name}: is not a file of this page", "The page names no file with its SHA-256.")
OTHER_ROWS = Pattern(
    "{name}: has other rows: its SHA-256 is {digest}, and the page names {wanted}",
    "The given rows are not those of the page.",
)
OTHER_FIGURE = Pattern(
    "{where}: the page says {page}, the files give {files}",
    "All files are those of the page, and this text or attribute is another one when the page is made again.",
)
MORE_FAULTS = Pattern("{places} {verb}", "More places differ than are shown.")
CANNOT_BE_MADE = Pattern(
    "the page cannot be made again from its files: {why}", "Making the page again failed."
)
NOT_CHECKED_ROWS = Pattern(
    "the last messages of the tasks were not checked: give the rows with --replay (SHA-256 {digest})",
    "The page was made with rows, and none are given.",
)
OTHER_PROGRAM = Pattern(
    "the page was made with {name} {was}, and this is {now}: differences can come from that",
    "The page names another version. With another matplotlib, only the texts of plots are compared.",
)
NOT_CHECKED_LINES = Pattern(
    "the lines of the plots were not compared, only their texts: the page names another matplotlib",
    "The page names another version of matplotlib.",
)
NOT_CHECKED_AUTHOR = Pattern(
    "the heading and the notes were not checked: the author wrote them", "The author gave a heading or notes."
)
WRONG_LABEL = Pattern(
    "{name}: the page names it {label}, but its weights are {stated}, as the model file says",
    "A label of the page names another type than the result.",
)

# The model card (edge report --card).
CARD_TITLE = Pattern("{name}: quantized GGUF files", "Always, without --title.")
CARD_TABLE = Pattern(
    "KL: mean divergence from the base model, in nats per token. Same commands: the percentage of steps with the "
    "commands of the reference, with its 95 % interval. Score: 100 × command F1 on recorded steps.",
    "Always, under the table of files.",
)
CARD_SOLVED = Pattern(
    "Tasks solved: the percentage of trials in a sandbox whose task was solved, with its 95 % interval.",
    "Trials of some file are given.",
)
CARD_COMMANDS = Pattern(
    "These commands convert, answer and measure again. A file is the same if its SHA-256 is the same.",
    "Always. The settings are those that the results record. A file with an importance matrix needs edge imatrix too.",
)
ADVICE_BASE = Pattern(
    "The unquantized base of the comparison.",
    "The row of the reference, if its result says that it is not quantized.",
)
ADVICE_REFERENCE = Pattern("The reference of the comparison.", "The row of another reference.")
ADVICE_FIRST = Pattern(
    "Take it if it fits into your memory.",
    "The largest file that no other one beats by size and KL divergence.",
)
ADVICE_ONLY = Pattern("The only choice here.", "No other file is left that none beats.")
ADVICE_NEXT = Pattern(
    "Take it if {file} does not fit.",
    "No other file beats it by size and KL divergence. file: the next larger such file.",
)
ADVICE_BEATEN = Pattern(
    "Take {file} instead: it is not larger, and nearer to the base model.",
    "Its KL divergence is lower, and the 95 % intervals of both do not overlap.",
)
ADVICE_LOSS = Pattern("It lost {points} points of score.", "The 95 % interval of its difference is below 0.")
ADVICE_NO_LOSS = Pattern(
    "No loss of score was detected.", "At least 6 tasks differ, and the interval includes 0 or is above it."
)
ADVICE_FEW = Pattern("Too few tasks differ to say whether the score changed.", "Fewer than 6 tasks differ.")
NOT_SOLVED = Pattern(
    "Whether an agent with {these} solves whole tasks.", "No trials are given for these files."
)
NOT_TRIED = Pattern("The tasks that {files} solve.", "Trials of other files are given, but not of these.")
ONLY_ROWS = Pattern(
    "Anything but the recorded steps of {rows}: {pairs}.", "Always. The rows that the results name."
)
NO_KL = Pattern("The KL divergence of {files}.", "The report has no measurement of these files.")
MATRIX = Pattern(
    "Files without an importance matrix: {files} used one.", "The results say that these files used one."
)
NO_MEMORY = Pattern("The memory of {files}.", "The GGUFs of these files are not given.")
MEMORY_ESTIMATED = Pattern(
    "The memory in the table: it is estimated from the headers of the files.", "The GGUFs are given."
)
NO_SPEED = Pattern("The speed on your machine.", "Always.")
NO_LICENCE = Pattern(
    "The licence is unknown: the files do not name one.", "Neither a GGUF nor an option names a licence."
)
NO_QUANTIZER = Pattern(
    "Who quantized the files is unknown: the files do not say it.",
    "Neither a GGUF nor an option names a person.",
)
