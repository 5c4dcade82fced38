#!/usr/bin/env bash
# What each quantization costs the embedded model on its held-out episodes: score, agreement with bf16, size.
#
#   benchmarks/tiny_quantization.sh OUT_FOLDER
#
# Unconstrained and greedy, as the published runs are. Needs `edge` on the path; writes the results and comparison.md.
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
for quant in bf16 Q8_0 Q6_K Q4_K_M Q3_K_M Q2_K; do
  edge convert "$here/models/tiny-terminal" --quant "$quant" --out "$out/tiny-$quant.gguf"
  edge eval --model "$out/tiny-$quant.gguf" --replay "$here/models/tiny-terminal/eval.jsonl" \
    --unconstrained --max-tokens 256 --out "$out/tiny-$quant.json"
done
edge compare "$out"/tiny-{Q8_0,Q6_K,Q4_K_M,Q3_K_M,Q2_K}.json --reference "$out/tiny-bf16.json" \
  --json "$out/comparison.json" > "$out/comparison.md"
python3 "$here/benchmarks/table.py" "$out"/tiny-{bf16,Q8_0,Q6_K,Q4_K_M,Q3_K_M,Q2_K}.json --reference "$out/tiny-bf16.json"
