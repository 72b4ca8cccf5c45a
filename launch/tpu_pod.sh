#!/usr/bin/env bash
# Trains on all hosts of a Google Cloud TPU slice:
#
#     bash launch/tpu_pod.sh --tpu=NAME --zone=ZONE --folder=moecl_jax \
#         --config=FILE.py --workdir=DIR [--config.KEY=VALUE ...] [--dry-run]
#
# --folder is where the repository lies on each host, with `pip install -e . "jax[tpu]"` done. The
# workdir must be a folder that all hosts share (Filestore, or a bucket by Cloud Storage FUSE).
moecl_defaults="tpu= zone= folder=moecl_jax"
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

moecl_over_all_devices
command="cd $(moecl_quoted "$folder") && $(moecl_quoted "${PYTHON:-python3}" -m moecl_jax train \
  "${moecl_train[@]}" --coordinator=auto)"
moecl_do gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="$command"
