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
