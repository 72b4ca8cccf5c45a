#!/usr/bin/env bash
# Tries faults (kills, signals, full disks, damaged and hostile files) and prints a table of outcomes:
#
#     bash launch/faults.sh [TABLE.md]      # also writes the table to a file
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
moecl_private_caches
cd "$moecl_root"

MOECL_FAULTS="$(mktemp -d)"
export MOECL_FAULTS
trap 'rm -rf "$MOECL_FAULTS"' EXIT
status=0
"$moecl_python" -m pytest -n 2 -q -m slow \
  tests/faults tests/runs/test_checkpoints.py tests/cli/test_signals.py \
  tests/weights/test_hostile_files.py tests/interchange/test_hostile_adapters.py \
  tests/data/test_hostile_data.py tests/config/test_ranges.py tests/serving/test_lines.py \
  >&2 || status=$?

"$moecl_python" - "$MOECL_FAULTS" "$status" "${1:-}" <<'PYTHON'
import collections
import json
import pathlib
import sys

folder, status, target = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
counts = collections.defaultdict(collections.Counter)
for file in sorted(folder.glob("*.json")):
    for fault, times, outcome in json.loads(file.read_text(encoding="utf-8")):
        counts[fault][outcome] += times
lines = ["| fault | tried | outcome |", "| --- | --- | --- |"]
for fault, found in sorted(counts.items()):
    outcome = ", ".join(f"{name}: {times:,}" for name, times in sorted(found.items()))
    lines.append(f"| {fault} | {found.total():,} | {outcome} |")
total = sum(found.total() for found in counts.values())
# The tests fail where anything is lost, or goes wrong in silence.
found = "a test failed, so faults are missing here" if status else "lost: 0, silent: 0"
lines.append(f"| **all** | {total:,} | {found} |")
print("\n".join(lines))
if target:
    pathlib.Path(target).write_text("\n".join(lines) + "\n", encoding="utf-8")
PYTHON
exit "$status"
