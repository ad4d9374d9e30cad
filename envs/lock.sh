#!/bin/sh
# Resolve envs/requirements.in in a fresh environment and write envs/requirements.lock.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
grep -v -e '--no-deps' envs/requirements.in > "$work/resolved.in"
grep -e '--no-deps' envs/requirements.in | sed 's/ *#.*//' > "$work/alone.in"
"$work/venv/bin/pip" install --quiet --upgrade pip
"$work/venv/bin/pip" install --quiet -r "$work/resolved.in"
"$work/venv/bin/pip" install --quiet --no-deps -r "$work/alone.in"
{
  echo "# Made by envs/lock.sh from envs/requirements.in; install with: pip install --no-deps -r envs/requirements.lock"
  "$work/venv/bin/pip" freeze --all --exclude pip --exclude interlace
} > envs/requirements.lock
