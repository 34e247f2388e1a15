#!/usr/bin/env bash
# Stop the mmserver that start.sh started; nothing happens when none runs.
#   ./stop.sh [--data-dir DIR] [--config FILE]
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
venv="${MMSERVER_VENV:-$here/.venv}"
flags=()

absolute() { case "$1" in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$PWD" "$1" ;; esac; }

while [ $# -gt 0 ]; do
    case "$1" in
        --data-dir | --config)
            if [ $# -lt 2 ]; then echo "stop.sh: $1 needs a value" >&2; exit 2; fi
            flags+=("$1" "$(absolute "$2")"); shift 2 ;;
        --data-dir=* | --config=*) flags+=("${1%%=*}" "$(absolute "${1#*=}")"); shift ;;
        -h | --help) sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "stop.sh: unknown argument $1; see --help" >&2; exit 2 ;;
    esac
done

if [ ! -x "$venv/bin/mmserver" ]; then exit 0; fi # never set up, so never started
if [ -n "${MMSERVER_DATA_DIR:-}" ]; then MMSERVER_DATA_DIR="$(absolute "$MMSERVER_DATA_DIR")"; export MMSERVER_DATA_DIR; fi
if [ -n "${MMSERVER_CONFIG:-}" ]; then MMSERVER_CONFIG="$(absolute "$MMSERVER_CONFIG")"; export MMSERVER_CONFIG; fi
data_dir="$(cd "$here" && "$venv/bin/mmserver" settings ${flags[@]+"${flags[@]}"} --value data_dir)"

# shellcheck source=deploy/process.sh
. "$here/deploy/process.sh"
stop_running "$data_dir/mmserver.pid" 30
