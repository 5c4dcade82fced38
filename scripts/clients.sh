#!/usr/bin/env bash
# Install real clients in pinned versions, run a session of each against `edge serve`, and print the table of docs/serve.md.
#
#   scripts/clients.sh [CLIENT...]        all clients, or only the named ones
#
# It needs edge (EDGE_PYTHON, default: .venv/bin/python), bubblewrap, Node 20 or newer with npm, Python 3.12
# (CLIENTS_PYTHON, default: python3.12), and 5 GB in CLIENTS (default: build/clients). pip and npm fetch packages; the
# clients themselves run without a network, in a folder of their own.
set -euo pipefail
cd "$(dirname "$0")/.."
clients=$(realpath -m "${CLIENTS:-build/clients}")
edge=${EDGE_PYTHON:-.venv/bin/python}
python=${CLIENTS_PYTHON:-python3.12}
for needed in bwrap node npm "$python" "$edge"; do
  command -v "$needed" > /dev/null || { echo "clients.sh: $needed is not here; install it first" >&2; exit 1; }
done
mkdir -p "$clients"

install() { # NAME KIND PACKAGE...
  local folder=$clients/$1 kind=$2 log=$clients/$1.log
  shift 2
  [ "$(cat "$folder/installed" 2> /dev/null)" = "$*" ] && return
  rm -rf "$folder"
  mkdir -p "$folder"
  echo "installing $*" >&2
  if [ "$kind" = npm ]; then
    echo '{"type": "module"}' > "$folder/package.json"
    npm install --prefix "$folder" --no-audit --no-fund "$@" > "$log" 2>&1 || return 1
  else
    "$python" -m venv "$folder/venv" || return 1
    if command -v uv > /dev/null; then # much faster
      uv pip install -q --python "$folder/venv/bin/python" "$@" > "$log" 2>&1 || return 1
    else
      "$folder/venv/bin/pip" install -q "$@" > "$log" 2>&1 || return 1
    fi
  fi
  echo "$*" > "$folder/installed"
}

while read -r name kind packages; do
  case "$name" in '' | '#'*) continue ;; esac
  if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
  # shellcheck disable=SC2086 # several packages
  install "$name" "$kind" $packages || echo "clients.sh: $name could not be installed; see $clients/$name.log" >&2
done < scripts/clients/pins.txt
exec "$edge" scripts/clients/run.py "$clients" "$@"
