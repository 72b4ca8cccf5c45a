#!/usr/bin/env bash
# Trains nine methods and three variants of MoE-CL on three orders of MTL5 with SmolLM2-135M and
# reports how they compare:
#
#     bash launch/comparison.sh [ARGUMENTS OF moecl sweep ...]
#
# The data are read from ../shared/data/mtl5 (configs/mtl5_comparison.py says how to name another
# folder). Takes hours. An interrupted comparison goes on where it stopped when run again. Arguments
# given here hold over those below, but leave --workdir as it is. Delete runs/comparison to start
# over. docs/howto/comparison.md has the protocol.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" demo
cd "$moecl_root"

methods="per_task,sequential_lora,o_lora,mocl,replay,ewc,lwf"
methods+=",moe_cl,moe_cl:adversarial.objective=off,moe_cl:adversarial.objective=paper"
methods+=",moe_cl:moe_cl.shared=moving,joint"

# If some runs failed, the others are reported.
status=0
"$moecl_python" -m moecl_jax sweep --config=configs/mtl5_comparison.py --methods="$methods" \
  --orders=1,2,3 --workdir=runs/comparison "$@" || status=$?
((status < 2)) && [[ -e runs/comparison/sweep.json ]] || exit "$status"

"$moecl_python" -m moecl_jax report --workdir=runs/comparison --output=runs/comparison/report.html
exit "$status"
