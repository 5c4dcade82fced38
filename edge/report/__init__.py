"""The page, the card, the plots and the choice of a file.

build     writes a report
contents  the contents of a report
evidence  the files that a report is made of
worse     the steps that got worse
plots     plots as SVG and PNG
words     numbers, verdicts and definitions in words
origin    how each result was made
page      the HTML page
card      the short form for a model card
choice    which quantization to take, and why
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.report.build import report

__all__ = ["report"]


def __getattr__(name: str) -> Any:
    """Import the public function when it is first used: the command line stays light."""
    if name != "report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge.report.build import report

    return report
