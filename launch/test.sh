#!/usr/bin/env bash
# Lints, type-checks and runs the quick tests:
#
#     bash launch/test.sh [PYTEST ARGUMENTS ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" test
moecl_private_caches
cd "$moecl_root"

"$moecl_python" -m ruff check
"$moecl_python" -m mypy moecl_jax
"$moecl_python" -m pytest -n 2 --dist=loadfile -rs -m "not slow and not oracle" "$@"
