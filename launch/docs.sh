#!/usr/bin/env bash
# Builds the documentation as a site, and serves it on this machine:
#
#     bash launch/docs.sh [--build] [--port=8000]
#
# --build only builds. Warnings are errors. The site is in docs/_build/html.
set -euo pipefail

build_only=false
port=8000
for argument in "$@"; do
  case "$argument" in
    --build) build_only=true ;;
    --port=*) port="${argument#--port=}" ;;
    *)
      printf 'docs: error: unknown argument %s; expected --build or --port=N\n' "$argument" >&2
      exit 2
      ;;
  esac
done
[[ "$port" =~ ^[1-9][0-9]*$ ]] || {
  printf 'docs: error: --port=%s must be a number, 1 or more\n' "$port" >&2
  exit 2
}

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" docs
cd "$moecl_root"

JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" "$moecl_python" -m sphinx -W --keep-going -q \
  docs docs/_build/html
printf 'The site is in %s\n' "$moecl_root/docs/_build/html"
if ! "$build_only"; then
  printf 'Serving it on http://localhost:%s until Ctrl-C\n' "$port"
  "$moecl_python" -m http.server "$port" --bind 127.0.0.1 --directory docs/_build/html
fi
