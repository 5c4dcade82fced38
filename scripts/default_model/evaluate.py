#!/usr/bin/env python3
"""Judge a model on the 250 held-out requests of requests/.

    python scripts/default_model/evaluate.py --model model.gguf --out result.json
    python scripts/default_model/evaluate.py --model base.gguf --lora adapter.gguf --limit 40

The model answers each request once and greedily, with the messages of `edge run`. The commands of the answer run in a
sandbox without network (sandbox.py; Linux, needs bubblewrap). Only its outcome counts, not the words of the commands.
judge.py says what right, wrong and destructive mean. The row "unseen" of the table counts the requests whose command
form is in no kind (unseen.py). Ctrl-C ends the run and prints the table of the answers so far.

The requests never go into training data. Only this program, unseen.py and the tests read them.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from judge import Judgement, Request, judge, read_requests  # noqa: E402
from kinds import read_kinds  # noqa: E402
from unseen import unseen  # noqa: E402

from edge import Action, EdgeError, Loading, Runner, task_messages  # noqa: E402
from edge.answer.action import parse_action  # noqa: E402
from edge.llama.loading import parse_adapters  # noqa: E402

MAX_TOKENS = 256


@dataclass(frozen=True)
class Judged:
    """A request, what the model answered, and the verdict."""

    id: str
    area: str
    rare: bool
    text: str
    answer: str
    valid: bool
    """The answer is an action."""
    cut: bool
    """edge ended the action because the model had used its tokens."""
    judgement: Judgement
    reason: str
    out: str
    tokens: int
    seconds: float


def ask(runner: Runner, request: Request) -> Judged:
    """Ask the model, run what it types, and judge it."""
    begin = time.monotonic()
    action = runner.act(task_messages(request.text), MAX_TOKENS)
    seconds = time.monotonic() - begin
    verdict = judge(request, "".join(command.keystrokes for command in action.commands))
    return Judged(
        id=request.id,
        area=request.area,
        rare=request.rare,
        text=request.text,
        answer=action.text,
        valid=is_valid(action),
        cut=action.closed_at_budget,
        judgement=verdict.judgement,
        reason=verdict.reason,
        out=verdict.out,
        tokens=action.completion_tokens,
        seconds=round(seconds, 3),
    )


def is_valid(action: Action) -> bool:
    """Whether the text of the answer is an action. The grammar makes it one; this does not rely on it."""
    try:
        parse_action(action.text)
    except EdgeError:
        return False
    return True


def chosen(requests: list[Request], area: str | None, limit: int | None) -> list[Request]:
    """The requests of an area, at most `limit`. They are spread evenly over the files."""
    some = [request for request in requests if area in (None, request.area)]
    if limit is None or limit >= len(some):
        return some
    return [some[i * len(some) // limit] for i in range(limit)]


def table(rows: list[Judged], unseen_ids: set[str]) -> str:
    """Counts for each area, for everyday and rare requests, for those with an unseen form, and for all."""
    areas = sorted({row.area for row in rows})
    groups = [(area, [row for row in rows if row.area == area]) for area in areas]
    groups += [
        ("everyday", [row for row in rows if not row.rare]),
        ("rare", [row for row in rows if row.rare]),
    ]
    groups += [("unseen", [row for row in rows if row.id in unseen_ids]), ("all", rows)]
    lines = [
        f"{'':14}{'right':>7}{'wrong':>7}{'destr.':>8}{'valid':>7}{'cut':>5}{'of':>5}{'right %':>9}{'s':>8}"
    ]
    for name, group in groups:
        if not group:
            continue
        if name == "everyday":
            lines.append("")
        counts = Counter(row.judgement for row in group)
        seconds = statistics.mean(row.seconds for row in group)
        lines.append(
            f"{name:14}{counts['right']:7}{counts['wrong']:7}{counts['destructive']:8}"
            f"{sum(row.valid for row in group):7}{sum(row.cut for row in group):5}{len(group):5}"
            f"{100 * counts['right'] / len(group):9.1f}{seconds:8.2f}"
        )
    return "\n".join(lines)


def write(path: Path, model: Path, adapters: list[str], rows: list[Judged]) -> None:
    """Write all answers and verdicts, with a temporary name until the file is complete."""
    text = json.dumps(
        {"model": str(model), "adapters": adapters, "answers": [asdict(row) for row in rows]},
        ensure_ascii=False,
        indent=1,
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FILE.gguf")
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:SCALE]",
        help="a LoRA adapter in GGUF; can be repeated",
    )
    parser.add_argument("--limit", type=int, help="ask so many requests only, spread over all")
    parser.add_argument("--by", metavar="AREA", help="ask the requests of this area only")
    parser.add_argument("--threads", type=int, help="by default the physical cores")
    parser.add_argument("--gpu-layers", type=int, help="by default as many as fit")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write each answer and verdict")
    parser.add_argument("--quiet", action="store_true", help="print the table only")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    requests = chosen(read_requests(), options.by, options.limit)
    if not requests:
        sys.exit(f"no request has the area {options.by}")
    rows: list[Judged] = []
    try:
        adapters = parse_adapters(options.lora)
        loading = Loading(threads=options.threads, gpu_layers=options.gpu_layers, adapters=adapters)
        with Runner.open(options.model, loading) as runner:
            for number, request in enumerate(requests, start=1):
                rows.append(row := ask(runner, request))
                if not options.quiet:
                    print(f"{number:4}/{len(requests)} {row.judgement:12}{row.id:28}{row.reason}", flush=True)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
    except EdgeError as error:
        sys.exit(str(error))
    if rows:
        print(table(rows, set(unseen(requests, read_kinds()))))
        if options.out is not None:
            write(options.out, options.model, options.lora, rows)


if __name__ == "__main__":
    main()
