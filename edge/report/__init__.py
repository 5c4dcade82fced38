"""The page, the card, the plots and the choice of a file.

build         writes a report
collect       reads and compares the results of a report
contents      the contents of a report
group         which runs compare with the reference
evidence      results and their measurements, read from files
measurements  measurements, read from files
tried         the trials of a report, each with the result of the same model
trial_words   the trials in words
worse         the steps that got worse
drawings      the plots that a report has
plots         plots as SVG and PNG
words         numbers, verdicts and definitions in words
patterns      every sentence of a report, and when it is true
origin        how each result was made
page          the HTML page
embedded      what a page says about its files
short_form    the short form in Markdown
model_card    the model card of a repository
templates     the Jinja environment of the pages
verify        whether a page is that of its files
rank_page     a ranking as one HTML page
choice        which quantization to take, and why
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.report.build import report

__all__ = ["report"]


def __getattr__(name: str) -> Any:
    """Import the public function on first use, so that the command line starts fast."""
    if name != "report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge.report.build import report

    return report
