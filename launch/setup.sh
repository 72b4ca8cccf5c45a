# Prepares the Python environment; the other launch scripts source it, with an extra's name:
#
#     source launch/setup.sh test        # one of the extras in pyproject.toml
#
# Installs into $VIRTUAL_ENV if that is set, else into .venv in the repository, which it creates with
# $PYTHON (default: python3). When nothing has changed since the last time it does nothing. Sets
# moecl_root (the repository), moecl_env (the environment) and moecl_python (its interpreter).
set -euo pipefail

moecl_root="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
moecl_env="${VIRTUAL_ENV:-$moecl_root/.venv}"
moecl_python="$moecl_env/bin/python"

moecl_fail() {
  printf 'setup: error: %s\n' "$*" >&2
  exit 1
}

moecl_check_version() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    moecl_fail "$1 is $("$1" --version 2>&1), but moecl_jax needs Python 3.11 or newer;" \
      "name another with PYTHON=/path/to/python3"
}

# Runs a command with its output kept in the log, which is shown only if the command fails.
moecl_logged() {
  "$@" >>"$moecl_log" 2>&1 </dev/null || {
    tail -n 20 "$moecl_log" >&2
    moecl_fail "this failed: $*; its whole output is in $moecl_log"
  }
}

# What the installed state depends on: the two requirement files and where the repository lies.
moecl_fingerprint() {
  "$moecl_python" - "$moecl_root" <<'PYTHON'
import hashlib
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(str(root).encode())
for name in ("pyproject.toml", "launch/demo-requirements.txt"):
    digest.update((root / name).read_bytes())
print(digest.hexdigest())
PYTHON
}

moecl_create_environment() {
  if [[ -x "$moecl_python" ]] && "$moecl_python" -m pip --version >/dev/null 2>&1; then
    return
  fi
  [[ -z "${VIRTUAL_ENV:-}" ]] ||
    moecl_fail "VIRTUAL_ENV is $VIRTUAL_ENV, which has no Python with pip; unset it or run python -m ensurepip in it"
  local python="${PYTHON:-python3}"
  command -v "$python" >/dev/null || moecl_fail "$python not found; moecl_jax needs Python 3.11+"
  moecl_check_version "$python"
  printf 'setup: creating %s\n' "$moecl_env" >&2
  # Over a half-made environment, or one without pip, this adds what is missing.
  moecl_logged "$python" -m venv "$moecl_env"
}

moecl_install() {
  local extra="$1" stamp="$moecl_env/moecl_setup.stamp" fingerprint
  # The stamp's first line is the fingerprint, each further line an extra installed under it.
  if [[ -x "$moecl_python" && -f "$stamp" ]]; then
    fingerprint="$(moecl_fingerprint)"
    if [[ "$(head -n 1 "$stamp")" == "$fingerprint" ]] && grep -qxF -- "$extra" "$stamp"; then
      return
    fi
  fi

  local moecl_log
  moecl_log="$(mktemp)"
  moecl_create_environment
  moecl_check_version "$moecl_python"
  printf 'setup: installing moecl_jax[%s] into %s (minutes, the first time)\n' \
    "$extra" "$moecl_env" >&2
  moecl_logged "$moecl_python" -m pip install --no-input -e "$moecl_root[$extra]"
  moecl_logged "$moecl_python" -m pip install --no-input --no-deps \
    -r "$moecl_root/launch/demo-requirements.txt"
  rm -f "$moecl_log"

  fingerprint="$(moecl_fingerprint)"
  if [[ ! -f "$stamp" || "$(head -n 1 "$stamp")" != "$fingerprint" ]]; then
    printf '%s\n' "$fingerprint" >"$stamp"
  fi
  printf '%s\n' "$extra" >>"$stamp"
}

# Points the caches of the checkers and libraries into the environment, for runs that should leave
# nothing in the user's home.
moecl_private_caches() {
  export XDG_CACHE_HOME="$moecl_env/cache"
  export HF_HOME="$XDG_CACHE_HOME/huggingface"
  export MYPY_CACHE_DIR="$XDG_CACHE_HOME/mypy"
  export RUFF_CACHE_DIR="$XDG_CACHE_HOME/ruff"
}

moecl_install "${1:-demo}"

# On a CPU, XLA takes a step's memory anew in every step, which costs less in large pages. C libraries
# other than glibc 2.35 or newer ignore this.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
