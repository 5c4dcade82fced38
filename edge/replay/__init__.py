"""Replay rows in, a scored result out.

rows        replay rows: read and checked
prepare     rows, their prompts, and what fits into the context
run         answers rows with a GGUF
vllm        answers rows with vLLM
openai      answers rows with an OpenAI-compatible server
client      the HTTP client of that server
recorder    journal, counters and result of every evaluation
journal     finished steps on disk while an evaluation runs
result      the result JSON
provenance  where a result comes from
known       known models and their published figures
score       scores the texts of another engine
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.replay.run import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    """Import the public function when it is first used: the command line stays light."""
    if name != "evaluate":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge.replay.run import evaluate

    return evaluate
