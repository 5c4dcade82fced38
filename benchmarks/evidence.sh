#!/usr/bin/env bash
# Make the evidence in benchmarks/evidence/: the cost of quantization for the embedded model, and the effect of engine,
# grammar and quantization on SmolLM2, compared with a real vLLM bf16 run.
#
#   benchmarks/evidence.sh tiny OUT
#   benchmarks/evidence.sh smollm2 OUT CHECKPOINT REPLAY.jsonl VLLM.json
set -euo pipefail
what=$1 out=$2
mkdir -p "$out"
case $what in
tiny)
  name=tiny-terminal rows=models/tiny-terminal/eval.jsonl
  edge sweep models/$name --quants Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q3_K_M,IQ3_S,Q2_K --replay $rows --out "$out" --max-tokens 256 --keep
  for quant in bf16 Q4_K_M; do
    edge eval --model "$out/$name-$quant.gguf" --replay $rows --max-tokens 256 --unconstrained --out "$out/$name-$quant-free.json"
    edge eval --model "$out/$name-$quant.gguf" --replay $rows --max-tokens 256 --parallel 1 --out "$out/$name-$quant-exact.json"
    edge eval --model "$out/$name-$quant.gguf" --replay $rows --max-tokens 256 --think off --out "$out/$name-$quant-unthinking.json"
  done
  order=(bf16 Q8_0 Q6_K Q5_K_M Q4_K_M Q3_K_M IQ3_S Q2_K)
  results=("${order[@]/#/$out/$name-}")
  edge report "${results[@]/%/.json}" "$out"/$name-*.measure.json "$out"/$name-*-{free,exact,unthinking}.json \
    --force --reference "$out/$name-bf16.json" --replay $rows --plots "$out/plots" --out "$out/report.html" --markdown "$out/report.md"
  ;;
smollm2)
  checkpoint=$3 replay=$4 vllm=$5 name=$(basename "$3")
  python - "$replay" "$vllm" "$out/rows.jsonl" <<'END'
import json, sys
wanted = {(step["task_id"], step["step_idx"]) for step in json.load(open(sys.argv[2]))["per_step"]}
with open(sys.argv[3], "w") as out:
    for line in open(sys.argv[1]):
        row = json.loads(line)
        if (row["task_id"], row["step_idx"]) in wanted:
            out.write(line)
END
  for quant in bf16 Q8_0; do
    edge convert "$checkpoint" --quant $quant --out "$out/$name-$quant.gguf"
    for how in free grammar; do
      edge eval --model "$out/$name-$quant.gguf" --replay "$out/rows.jsonl" --max-tokens 256 --out "$out/$quant-$how.json" \
        $([ $how = free ] && echo --unconstrained || true)
    done
  done
  edge eval --model "$out/$name-bf16.gguf" --replay "$out/rows.jsonl" --max-tokens 256 --unconstrained --parallel 1 \
    --out "$out/bf16-free-exact.json"
  edge measure --model "$out/$name-Q8_0.gguf" --base "$out/$name-bf16.gguf" --replay "$out/rows.jsonl" --out "$out/Q8_0.measure.json"
  edge report "$out"/{bf16-free,bf16-grammar,bf16-free-exact,Q8_0-free,Q8_0-grammar}.json "$out/Q8_0.measure.json" --reference "$vllm" \
    --note "The weights of this checkpoint come from a Q4_1 file, and its width of 576 is not a multiple of 256. This page shows the \
effect of engine and grammar, and nothing about quantization. The section How it was made lists the real types of the tensors." \
    --replay "$out/rows.jsonl" --plots "$out/plots" \
    --out "$out/report.html" --markdown "$out/report.md"
  ;;
*)
  echo "usage: $0 tiny OUT | smollm2 OUT CHECKPOINT REPLAY.jsonl VLLM.json" >&2
  exit 2
  ;;
esac
