"""What every evaluation does, whoever answers: finished steps go to the journal, at the end the result is written."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from edge.errors import BackendError, Interrupted, ResultError
from edge.replay.journal import Journal, journal_path
from edge.replay.prepare import Asked, template_summary
from edge.replay.provenance import provenance
from edge.replay.result import read_result, step_result, stored_run, write_result
from edge.replay.rows import rows_sha256, step_key
from edge.replay.stored_result import EngineCounters, Head, Making, Result, Step
from edge.system.hashes import file_sha256
from edge.system.outputs import Run, check_replaced
from edge.system.places import place_of
from edge.system.progress import Watch


@dataclass
class Recorder:
    """Takes answers in any order, each with what is known of its making, and keeps them."""

    asked: Asked
    journal: Journal
    watch: Watch | None = None
    wanted: list[int] = field(default_factory=list)
    """The indices of the rows that are not answered yet."""
    totals: Counter[str] = field(default_factory=Counter)
    """Tokens of the answers of this run, by their counter's name."""
    loaded: float | None = None
    """When answering began, by time.perf_counter(); None before."""

    def finished(self, index: int, text: str, thought_tokens: int = 0, **making: Unpack[Making]) -> None:
        """Keep the answer to row `index`. `making` goes into its step; see `edge.replay.result.step_result`."""
        hashes = self.asked.hashes
        making = {"prompt_sha256": hashes[index] if hashes else None, **making}
        step = step_result(self.asked.rows[index], text, **making)
        self.journal.append(step)
        prompt_tokens = making.get("prompt_tokens") or 0
        self.totals["prompt_tokens"] += prompt_tokens
        self.totals["completion_tokens"] += making.get("completion_tokens") or 0
        self.totals["forced_tokens"] += making.get("forced_tokens") or 0
        self.totals["thought_tokens"] += thought_tokens
        if self.watch is not None:
            self.watch.finished(prompt_tokens, step["valid_json"])

    def watched(
        self,
        counters: Callable[[], tuple[int, int]] | None = None,
        *,
        say: Callable[[str], None] | None,
    ) -> Watch:
        """What shows the progress, from now on; `counters` as for `edge.system.progress.Watch`."""
        self.loaded = time.perf_counter()

        def answered() -> tuple[int, int]:
            return self.totals["prompt_tokens"], self.totals["completion_tokens"]

        steps = len(self.asked.places)
        self.watch = Watch(steps, steps - len(self.wanted), counters or answered, say)
        return self.watch


def carry_out(
    out: Path | str,
    asked: Asked,
    run: Run,
    answer: Callable[[Recorder], EngineCounters],
    head: Callable[[EngineCounters], Head],
    *,
    force: bool = False,
    keep_complete: bool = True,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Answer what the journal beside `out` lacks, write the result there and return it.

    With `keep_complete`, a complete result of the same run stays as it is, and is returned; not for a server, which may
    have another model now. `say` receives a line about that.

    `run`: all that the answers depend on beside the rows and prompts, which are added. `answer` answers the
    recorder's `wanted` rows and returns the run's counters (not called where none is wanted); `head` makes the
    result's top-level fields of them. A result of another run is
    replaced only with `force`. Raises ResultError and what `answer` raises; a KeyboardInterrupt is raised
    again with a line that tells how far it came, a BackendError with what is kept.
    """
    places = asked.places
    rows = [asked.rows[place] for place in places]
    known = {"rows_sha256": rows_sha256(asked.rows), "prompts_sha256": asked.prompts_sha256}
    run = {**run, **asked.asking.identity, **known}
    check_replaced(out, run, stored_run, kind="a result", force=force)
    if keep_complete and not force and (complete := _complete(out, asked, run)) is not None:
        if say is not None:
            say(f"{out}: is already complete, nothing is answered again; --force answers again")
        return complete
    with Journal.open(journal_path(out), run) as journal:
        recorder = Recorder(
            asked, journal, wanted=[i for i in places if asked.rows[i].key not in journal.done]
        )
        began = time.perf_counter()
        try:
            work = answer(recorder) if recorder.wanted else {}
        except KeyboardInterrupt:
            raise Interrupted(_how_far(len(journal.done), len(rows), journal.path)) from None
        except BackendError as error:
            kept = _kept(len(journal.done), len(rows), journal.path)
            raise BackendError(f"{error}; {kept}" if kept else str(error)) from None
        ended = time.perf_counter()
        loaded = began if recorder.loaded is None else recorder.loaded
        steps = [journal.done[row.key] for row in rows]
        times = loaded - began, ended - loaded
        result = _head(asked, run, head(work), steps, len(recorder.wanted), times)
        written = write_result(out, result, steps)
        journal.remove()
    return written


def _complete(out: Path | str, asked: Asked, run: Run) -> Result | None:
    """The result at `out` if it is of the same run, has every row, and answers do not depend on chance."""
    place, through = place_of(out)
    journal = journal_path(out)
    if through or not place.is_file() or (journal is not None and journal.exists()):
        return None
    if run.get("temperature") and run.get("seed") is None:
        return None
    try:
        result = read_result(place)
    except ResultError:
        return None
    same = result.get("run") == json.loads(json.dumps(run))
    return (
        result
        if same
        and {step_key(step) for step in result["per_step"]}
        == {asked.rows[place].key for place in asked.places}
        else None
    )


def _head(
    asked: Asked, run: Run, told: Head, steps: list[Step], wanted: int, times: tuple[float, float]
) -> Head:
    """The top-level fields of the result: those that the backend told, and those of every backend.

    `wanted`: the number of rows that this run answered. `times`: seconds to load the model, and to answer.
    """
    loading, seconds = times
    lengths = [len(prompt) for prompt in asked.prompts]
    # A shard describes the prompts of all rows, so that the shards together do.
    statuses = [prompt.status for prompt in asked.rendered]
    if not asked.rendered:  # the server wrote the prompts
        statuses = ["server_chat"] * len(steps)
        lengths = [tokens for step in steps if (tokens := step.get("prompt_tokens"))]
    asking = asked.asking
    shard = asking.shard
    return {
        **told,
        "run": run,
        **({} if shard is None else {"shard": shard.fields(asked.places, len(asked.rows))}),
        "eval_path": str(asked.replay),
        "load_time_sec": round(loading, 3),
        "gen_time_sec": round(seconds, 3) if wanted else 0.0,
        "avg_sec_per_step": round(seconds / wanted, 3) if wanted else 0.0,
        "sampling": {**told["sampling"], **asking.sampling, "skipped_too_long": asked.skipped},
        "prompt_template": {
            **template_summary(statuses, lengths),
            **asking.recorded(asked.stripped, asked.thinking),
        },
        "engine": {"steps_done_before": len(steps) - wanted, **told["engine"]},
        "provenance": provenance(
            {
                **told["provenance"],
                "rows_sha256": str(run["rows_sha256"]),
                "rows_file_sha256": file_sha256(asked.replay),
            }
        ),
    }


def _how_far(done: int, steps: int, journal: Path | None) -> str:
    kept = _kept(done, steps, journal)
    return f"interrupted after {done} of {steps} steps" + (
        f", which are kept in {journal}; run the same command again to resume"
        if kept
        else "; nothing was written"
    )


def _kept(done: int, steps: int, journal: Path | None) -> str:
    if journal is None or not done:
        return ""
    return f"{done} of {steps} steps are kept in {journal}; run the same command again to resume"
