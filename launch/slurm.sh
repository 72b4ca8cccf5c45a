#!/usr/bin/env bash
# Submits a training to Slurm, a process for each GPU:
#
#     bash launch/slurm.sh --nodes=4 --gpus-per-node=8 --time=24:00:00 \
#         --config=FILE.py --workdir=DIR [--config.KEY=VALUE ...] [--dry-run]
#
# Works from the repository as it lies here, which all nodes must see, as they must the workdir. A
# job that was cut short goes on where it stopped when submitted again: Slurm sends SIGTERM two
# minutes before its time is over, and all processes save after the same step. Further settings of sbatch
# come from its environment variables (SBATCH_PARTITION, SBATCH_ACCOUNT).
moecl_defaults="nodes=1 gpus_per_node=8 time=24:00:00"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

moecl_over_all_devices
step="$(moecl_quoted srun --kill-on-bad-exit=1 "${PYTHON:-python3}" -m moecl_jax train \
  "${moecl_train[@]}" --coordinator=auto)"
moecl_do sbatch --job-name=moecl --nodes="$nodes" --ntasks-per-node="$gpus_per_node" \
  --gpus-per-node="$gpus_per_node" --time="$time" --signal=TERM@120 --chdir="$moecl_root" --wrap="$step"
