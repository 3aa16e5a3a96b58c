#!/usr/bin/env bash
# The tests that `make test` has not run yet, in three lanes side by side: the node's and the cluster's mostly wait, the
# trainer's take what time of the processor they leave. What each printed follows when it has ended.
set -uo pipefail
cd "$(dirname "$0")/.."
logs="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$logs"' EXIT

nice -n 10 .venv/bin/pytest --numprocesses 2 --dist loadfile tests/trainer >"$logs/trainer" 2>&1 &
trainer=$!
.venv/bin/pytest tests/node >"$logs/node" 2>&1 &
node=$!
.venv/bin/pytest --ignore tests/unit --ignore tests/golden --ignore tests/trainer --ignore tests/node
failed=$?
for lane in node trainer; do
	tail --pid="${!lane}" --lines +1 --follow "$logs/$lane"
	wait "${!lane}" || failed=1
done
exit "$failed"
