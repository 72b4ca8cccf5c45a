#!/usr/bin/env bash
# From a CSV with a column of texts and one of labels (0 and 1 will do) to texts with labels, in
# three commands:
#
#     bash examples/csv.sh comments.csv new.csv labelled.csv [BASE]
#
# The config, comments.py, and the run, runs/comments, stay in the current folder.
set -euo pipefail

data=$1 new=$2 labelled=$3 base=${4:-smollm2-135m}
name=$(basename "${data%.*}")

moecl new --data="$data" --config="$name.py" --base="$base"
moecl train --config="$name.py" --workdir="runs/$name"
moecl predict --workdir="runs/$name" --input="$new" --output="$labelled"
