#!/usr/bin/env bash
# Set mmserver up and start it; Ctrl-C or ./stop.sh ends it.
#   ./start.sh [--demo] [--web-host HOST] [--web-port PORT] [--background | -d] [--data-dir DIR] [--config FILE] [...]
#   --demo          make demo models from real market data and register them first
#   --background    return when the server answers; its output goes to mmserver.log in the data directory
# Everything else goes to `mmserver serve`. The data directory is `data` beside this script unless a setting says otherwise.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
venv="${MMSERVER_VENV:-$here/.venv}"
demo="" background=""
settings_flags=() serve_flags=()

absolute() { case "$1" in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$PWD" "$1" ;; esac; }
value_of() { if [ $# -lt 2 ]; then echo "start.sh: $1 needs a value" >&2; exit 2; fi; }

while [ $# -gt 0 ]; do
    case "$1" in
        --demo) demo=1; shift ;;
        -d | --background) background=1; shift ;;
        --web-host | --host) value_of "$@"; settings_flags+=(--host "$2"); shift 2 ;;
        --web-port | --port) value_of "$@"; settings_flags+=(--port "$2"); shift 2 ;;
        --data-dir | --config) value_of "$@"; settings_flags+=("$1" "$(absolute "$2")"); shift 2 ;;
        --web-host=* | --web-port=* | --host=* | --port=* | --data-dir=* | --config=*)
            flag="${1%%=*}" value="${1#*=}"; shift; set -- "$flag" "$value" "$@" ;;
        -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) serve_flags+=("$1"); shift ;;
    esac
done

"$here/setup.sh" ${demo:+--demo}
mmserver="$venv/bin/mmserver"
if [ -n "${MMSERVER_DATA_DIR:-}" ]; then MMSERVER_DATA_DIR="$(absolute "$MMSERVER_DATA_DIR")"; export MMSERVER_DATA_DIR; fi
if [ -n "${MMSERVER_CONFIG:-}" ]; then MMSERVER_CONFIG="$(absolute "$MMSERVER_CONFIG")"; export MMSERVER_CONFIG; fi
# Asked from the script's own directory, where the default data directory is.
values="$(cd "$here" && "$mmserver" settings ${settings_flags[@]+"${settings_flags[@]}"} --value data_dir --value host --value port)"
{ read -r data_dir && read -r host && read -r port; } <<<"$values"
pid_file="$data_dir/mmserver.pid" log_file="$data_dir/mmserver.log"

case "$host" in 0.0.0.0 | "") reachable=127.0.0.1 ;; ::) reachable="[::1]" ;; *:*) reachable="[$host]" ;; *) reachable="$host" ;; esac
url="http://$reachable:$port"

# shellcheck source=deploy/process.sh
. "$here/deploy/process.sh"
if pid="$(running_pid "$pid_file")"; then
    echo "mmserver is already running (pid $pid): $url"
    exit 0
fi

mkdir -p "$data_dir"
config_flags=()
for ((i = 0; i < ${#settings_flags[@]}; i++)); do
    if [ "${settings_flags[i]}" = --config ]; then config_flags=(--config "${settings_flags[i + 1]}"); fi
done
data_flags=(--data-dir "$data_dir" ${config_flags[@]+"${config_flags[@]}"})
if [ -n "$demo" ]; then
    "$mmserver" demo "$data_dir/demo" --register "${data_flags[@]}"
    if [ "$port" != 0 ]; then echo "to try:  curl $url/predict -d @$(printf %q "$data_dir/demo/requests/SP500.json")"; fi
fi
serve=("$mmserver" serve "${data_flags[@]}" --host "$host" --port "$port" ${serve_flags[@]+"${serve_flags[@]}"})

if [ -z "$background" ]; then
    echo $$ >"$pid_file" # exec keeps the process id
    exec "${serve[@]}"
fi

if [ "$port" = 0 ]; then echo "start.sh: --background needs a port other than 0" >&2; exit 2; fi
if answers "$venv/bin/python" "$url/livez" 0; then
    echo "start.sh: something else answers at $url; stop it or choose another --web-port" >&2
    exit 3
fi
if command -v setsid >/dev/null; then serve=(setsid "${serve[@]}"); fi
nohup "${serve[@]}" >>"$log_file" 2>&1 </dev/null &
pid=$!
echo "$pid" >"$pid_file"
if ! answers "$venv/bin/python" "$url/livez" 120 "$pid"; then
    tail -n 20 "$log_file" >&2
    if running_pid "$pid_file" >/dev/null; then
        echo "start.sh: mmserver (pid $pid) does not answer at $url yet; see $log_file, or ./stop.sh" >&2
    else
        rm -f "$pid_file"
        echo "start.sh: mmserver did not start; the reason is above and in $log_file" >&2
    fi
    exit 1
fi
echo "mmserver is running (pid $pid): $url"
