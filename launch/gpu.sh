#!/usr/bin/env bash
# Trains on one or several GPUs of this machine, in one process:
#
#     bash launch/gpu.sh --gpus=8 --config=FILE.py --workdir=DIR [--config.KEY=VALUE ...] [--dry-run]
#
# --gpus is how many, 1 if not given. With several, a batch is split over all of them, unless the
# arguments name another mesh (--config.mesh.fsdp=8). Runs the python of the active environment, or
# $PYTHON; JAX for GPUs must be installed there: pip install "jax[cuda13]".
moecl_defaults="gpus=1"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

[[ "$gpus" =~ ^[1-9][0-9]*$ ]] || moecl_fail "--gpus=$gpus must be a number, 1 or more"
((gpus == 1)) || moecl_over_all_devices
devices="$(seq -s, 0 $((gpus - 1)))"
cd "$moecl_root"
moecl_do env CUDA_VISIBLE_DEVICES="$devices" JAX_PLATFORMS=cuda \
  "${PYTHON:-python3}" -m moecl_jax train "${moecl_train[@]}"
