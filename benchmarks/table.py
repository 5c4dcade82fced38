#!/usr/bin/env python3
"""One line a result: size, score, first command, valid JSON, agreement with a reference, speed; as Markdown.

python benchmarks/table.py RESULT.json … --reference REFERENCE.json
"""

import argparse
import json
from pathlib import Path
from typing import Any


def line(path: Path, reference: dict[str, Any]) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    figures = result["aggregate"]
    other = {(s["task_id"], s.get("sample_idx", 0), s["step_idx"]): s for s in reference["per_step"]}
    steps = [(s, other[s["task_id"], s["sample_idx"], s["step_idx"]]) for s in result["per_step"]]
    same = sum(s["pred_command_units"] == r["pred_command_units"] for s, r in steps)
    groups = figures["by_source_group"]
    wordings = [
        f"{100 * groups[g]['avg_command_f1']:.1f}" for g in ("seen-wording", "unseen-wording") if g in groups
    ]
    engine = result.get("engine", {})
    file = Path(result["model_path"])
    cells = [
        path.stem,
        f"{file.stat().st_size / 1e6:.1f}" if file.exists() else "–",
        f"{100 * figures['avg_command_f1']:.2f}" + (f" ({' / '.join(wordings)})" if wordings else ""),
        f"{figures['first_cmd_exact_pct']}",
        f"{figures['valid_json_pct']}",
        f"{100 * same / len(steps):.1f}",
        f"{engine.get('completion_tokens', '–')}",
        f"{result['gen_time_sec']}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--reference", type=Path, required=True)
    args = parser.parse_args()
    reference = json.loads(args.reference.read_text(encoding="utf-8"))
    header = [
        "result",
        "MB",
        "score",
        "first command %",
        "valid JSON %",
        "same commands %",
        "tokens out",
        "seconds",
    ]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for path in args.results:
        print(line(path, reference))


if __name__ == "__main__":
    main()
