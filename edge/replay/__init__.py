"""Answer replay rows with a model and write a scored result.

rows           reads and checks replay rows
check          every problem of a replay file, and references that are not actions
asking         options of the prompts, and the shard
shards         splits rows into shards of whole tasks
join           puts shards together
prepare        renders and tokenizes prompts, and checks that they fit the context
run            answers rows with a GGUF
vllm           answers rows with vLLM
openai         answers rows with an OpenAI-compatible server
client         the HTTP client for that server
recorder       journal, counters and result of every evaluation
journal        keeps finished steps on disk while an evaluation runs
stored_result  the types of the result JSON
result         builds, writes and reads the result JSON
rules          checks the figures of a stored result, and scores steps of other rules again
provenance     records where a result comes from
known          known models and their published figures
score          scores the answers of another engine
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
