#!/usr/bin/env bash
# Compares the methods, and the forms of MoE-CL, on MTL5 with SmolLM2-135M:
#
#     bash launch/comparison.sh [ARGUMENTS OF moecl sweep ...]
#
# First each row trains with three learning rates on order 1, and the best on validation is chosen;
# then each row trains with its own on all orders and seeds; then the report is written. The data are
# read from ../shared/data/mtl5 (configs/mtl5_comparison.py says how to name another folder). Takes
# many hours. An interrupted comparison goes on where it stopped when run again, also in several
# terminals at once. Arguments given here go to the second sweep and hold over those below, but leave
# --workdir as it is. Delete runs/comparison to start over. docs/howto/comparison.md has the protocol.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" demo
cd "$moecl_root"

rates=(3e-4 1e-3 3e-3)
rows=(
  # per_task with rank 16 trains as many parameters as MoE-CL, which trains two experts.
  moe_cl per_task per_task:lora.rank=16 joint sequential_lora
  # Baselines.
  replay ewc lwf o_lora mocl slao n_lora inf_lora gain_lora
  # What becomes of the shared expert.
  moe_cl:moe_cl.shared=moving moe_cl:moe_cl.snapshot_dtype=int8 moe_cl:moe_cl.shared=frozen
  moe_cl:moe_cl.shared=merged moe_cl:moe_cl.shared=projected
  # The adversarial part, on top of the default.
  moe_cl:adversarial.objective=off moe_cl:adversarial.objective=paper
  moe_cl:adversarial.objective=confusion
  moe_cl:adversarial.objective=paper:adversarial.past=statistics
  moe_cl:adversarial.objective=confusion:adversarial.past=statistics
)

methods=""
for row in "${rows[@]}"; do
  for rate in "${rates[@]}"; do
    methods+="${methods:+,}$row:optimizer.learning_rate=$rate"
  done
done
"$moecl_python" -m moecl_jax sweep --config=configs/mtl5_comparison.py --methods="$methods" \
  --orders=1 --workdir=runs/comparison/rates
chosen="$("$moecl_python" launch/choose_rates.py runs/comparison/rates runs/comparison/grid)"

# If some runs failed, the others are reported.
status=0
"$moecl_python" -m moecl_jax sweep --config=configs/mtl5_comparison.py --methods="$chosen" \
  --orders=1,2,3 --seeds=0,1,2 --workdir=runs/comparison/grid "$@" || status=$?
((status < 2)) && [[ -e runs/comparison/grid/sweep.json ]] || exit "$status"

"$moecl_python" -m moecl_jax report --workdir=runs/comparison/grid \
  --output=runs/comparison/report.html
exit "$status"
