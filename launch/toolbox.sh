#!/usr/bin/env bash
# Compares the ways of keeping a model current that need more or less training, on order 1 of MTL5
# with SmolLM2-135M:
#
#     bash launch/toolbox.sh [ARGUMENTS OF moecl sweep ...]
#
# The frozen LLM alone, with examples in the prompt, with retrieval and a vote of neighbours; the
# default, an expert a task and joint training; and the default with a meta-learned start, with
# adversarial inputs and with next tokens. At last the default's experts become one LoRA, and
# `moecl advise` says which is best under which need. The rows that train take about 15 minutes of
# one core each. An interrupted run goes on where it stopped when run again. The data are read from
# ../shared/data/mtl5.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" demo
cd "$moecl_root"
moecl_toolbox=runs/toolbox

rows=(
  zero_shot few_shot few_shot:few_shot.choice=nearest knn retrieval
  moe_cl per_task joint
  moe_cl:meta.kind=reptile:meta.support=64
  moe_cl:adversarial_inputs.attack=fgm
  moe_cl:self_supervised.weight=0.1
)
"$moecl_python" -m moecl_jax sweep --config=configs/mtl5_comparison.py \
  --methods="$(IFS=, && echo "${rows[*]}")" --orders=1 --workdir=$moecl_toolbox "$@"

if [[ ! -e $moecl_toolbox/one_lora/results.json ]]; then
  "$moecl_python" -m moecl_jax distil --workdir=$moecl_toolbox/moe_cl/order1_seed0 \
    --into=$moecl_toolbox/one_lora
fi
runs=(--workdir=$moecl_toolbox --workdir=$moecl_toolbox/one_lora)
"$moecl_python" -m moecl_jax report "${runs[@]}" --output=$moecl_toolbox/report.html
"$moecl_python" -m moecl_jax advise "${runs[@]}"
