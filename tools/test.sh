#!/usr/bin/env bash
# The tests that `make test` has not run yet. Those of the trainer fill the time in which the others, which come first for the processor, wait for a cluster.
set -uo pipefail
cd "$(dirname "$0")/.."
log="$(mktemp)"
trap 'kill "${trainer:-}" 2>/dev/null; rm -f "$log"' EXIT

nice -n 5 .venv/bin/pytest --numprocesses 2 --dist loadfile tests/trainer >"$log" 2>&1 &
trainer=$!
.venv/bin/pytest --ignore tests/trainer
others=$?
tail --pid="$trainer" --lines +1 --follow "$log"
wait "$trainer"
exit $(( $? || others ))
