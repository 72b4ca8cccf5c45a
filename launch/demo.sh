#!/usr/bin/env bash
# Trains MoE-CL, one sequential LoRA and a LoRA a task on the same short stream, and compares them:
#
#     bash launch/demo.sh [--config.KEY=VALUE ...]
#
# Arguments go to both trainings. An interrupted demo goes on where it stopped when run again; a
# finished one is only printed. Delete runs/demo to start over.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" demo
cd "$moecl_root"

methods=(moe_cl sequential_lora per_task)
workdirs=()
for method in "${methods[@]}"; do
  workdir="runs/demo/$method"
  printf '\n== Training %s in %s\n' "$method" "$workdir"
  "$moecl_python" -m moecl_jax train --config=configs/quickstart.py --workdir="$workdir" \
    --config.method="$method" "$@"
  workdirs+=("--workdir=$workdir")
done

printf '\n== Comparison\n'
"$moecl_python" -m moecl_jax compare "${workdirs[@]}"
printf '\nResults, logs and checkpoints are in %s\n' "$moecl_root/runs/demo"
