#!/usr/bin/env bash
# Compares the methods, and the forms of MoE-CL, on MTL5 with SmolLM2-135M:
#
#     bash launch/comparison.sh [ARGUMENTS OF moecl sweep ...]
#
# First each method trains with three learning rates on order 1, and the best on validation is
# chosen; the forms of MoE-CL take that of MoE-CL. Then each row trains on three orders, each with a
# seed of its own; then the report is written. The data are read from ../shared/data/mtl5
# (configs/mtl5_comparison.py says how to name another folder). Takes about 20 hours of one core. An
# interrupted comparison goes on where it stopped when run again, also in several terminals at once.
# Arguments given here go to the second part and hold over those below (--orders=1,2,3 --seeds=0,1,2
# trains each order with each seed), but leave --workdir as it is. Delete runs/comparison to start
# over. docs/howto/comparison.md has the protocol.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" demo
cd "$moecl_root"

rates=(3e-4 1e-3 3e-3)
methods=(
  # per_task with rank 16 trains as many parameters as MoE-CL, which trains two experts.
  moe_cl per_task per_task:lora.rank=16 joint sequential_lora
  replay slao inf_lora n_lora gain_lora o_lora ewc lwf mocl
)
forms=(
  # The adversarial part, on top of the default.
  moe_cl:adversarial.objective=off moe_cl:adversarial.objective=paper
  moe_cl:adversarial.objective=confusion
  moe_cl:adversarial.objective=paper:adversarial.past=statistics
  moe_cl:adversarial.objective=confusion:adversarial.past=statistics
  # What becomes of the shared expert.
  moe_cl:moe_cl.shared=moving moe_cl:moe_cl.snapshot_dtype=int8 moe_cl:moe_cl.shared=frozen
  moe_cl:moe_cl.shared=merged moe_cl:moe_cl.shared=projected
)

with_rates=""
for method in "${methods[@]}"; do
  for rate in "${rates[@]}"; do
    with_rates+="${with_rates:+,}$method:optimizer.learning_rate=$rate"
  done
done
"$moecl_python" -m moecl_jax sweep --config=configs/mtl5_comparison.py --methods="$with_rates" \
  --orders=1 --workdir=runs/comparison/rates
chosen="$("$moecl_python" launch/choose_rates.py runs/comparison/rates runs/comparison/grid)"

rate="$(tr , '\n' <<<"$chosen" | sed -n 's/^moe_cl:optimizer.learning_rate=//p')"
for form in "${forms[@]}"; do
  chosen+=",$form:optimizer.learning_rate=$rate"
done

# If some runs failed, the others are reported.
status=0
for run in 1 2 3; do
  "$moecl_python" -m moecl_jax sweep --config=configs/mtl5_comparison.py --methods="$chosen" \
    --orders=$run --seeds=$((run - 1)) --workdir=runs/comparison/grid "$@" || status=$?
  ((status < 2)) || exit "$status"
done
[[ -e runs/comparison/grid/sweep.json ]] || exit "$status"

"$moecl_python" -m moecl_jax report --workdir=runs/comparison/grid \
  --output=runs/comparison/report.html
exit "$status"
