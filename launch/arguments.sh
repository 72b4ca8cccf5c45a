# Reads the arguments of the scripts that train on accelerators; they source it:
#
#     moecl_defaults="gpus=1"            # the script's own options, NAME=VALUE, "" where one must be given
#     source launch/arguments.sh
#
# moecl_needs names the arguments of moecl train that must be given, config and workdir if it is not set.
# Sets each option's variable (gpus-per-node becomes gpus_per_node), moecl_train (the arguments of
# moecl train: all that are none of the script's own) and moecl_root. --dry-run makes moecl_do print
# a command in place of running it.
set -euo pipefail

moecl_root="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
moecl_script="$(basename "$0")"
moecl_dry_run=0
moecl_train=()

moecl_fail() {
  printf '%s: error: %s\n' "$moecl_script" "$*" >&2
  exit 1
}

for moecl_pair in $moecl_defaults; do
  printf -v "${moecl_pair%%=*}" '%s' "${moecl_pair#*=}"
done
for moecl_argument in "$@"; do
  moecl_name="${moecl_argument%%=*}"
  moecl_name="${moecl_name#--}"
  moecl_name="${moecl_name//-/_}"
  if [[ "$moecl_argument" == --dry-run ]]; then
    moecl_dry_run=1
  elif [[ "$moecl_argument" == --*=* && " $moecl_defaults" == *" $moecl_name="* ]]; then
    printf -v "$moecl_name" '%s' "${moecl_argument#*=}"
  else
    moecl_train+=("$moecl_argument")
  fi
done
for moecl_pair in $moecl_defaults; do
  moecl_name="${moecl_pair%%=*}"
  [[ -n "${!moecl_name}" ]] || moecl_fail "--${moecl_name//_/-}=... must be given"
done
for moecl_name in ${moecl_needs-config workdir}; do
  [[ " ${moecl_train[*]-}" == *" --$moecl_name="* ]] ||
    moecl_fail "--$moecl_name=... must be given, as for moecl train"
done

# The rows of a batch are split over all devices, unless the arguments name a mesh.
moecl_over_all_devices() {
  [[ " ${moecl_train[*]}" == *" --config.mesh."* ]] || moecl_train+=(--config.mesh.data=-1)
}

# The words, quoted so that a shell reads them back as they are.
moecl_quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}

moecl_do() {
  if ((moecl_dry_run)); then
    printf '%s\n' "$(moecl_quoted "$@")"
  else
    "$@"
  fi
}
