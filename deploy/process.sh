# What start.sh and stop.sh share: which process the pid file means, whether it answers, and how it is stopped.

# running_pid FILE: print the process id in FILE if that process is alive and is an mmserver; else fail.
running_pid() {
    local pid=""
    if [ -f "$1" ]; then read -r pid <"$1" || true; fi
    case "$pid" in "" | *[!0-9]*) return 1 ;; esac
    if ! kill -0 "$pid" 2>/dev/null; then return 1; fi
    local command
    if [ -r "/proc/$pid/cmdline" ]; then
        if [ "$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null)" = Z ]; then return 1; fi
        command="$({ tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null || true)"
    else
        command="$(ps -p "$pid" -o args= 2>/dev/null || true)"
    fi
    # Another program may have got the id since; start.sh itself has it for a moment before it becomes the server.
    case "$command" in *"/mmserver serve "* | *"start.sh "*) printf '%s' "$pid" ;; *) return 1 ;; esac
}

# answers PYTHON URL SECONDS [PID]: wait until URL answers 200; fail after SECONDS, or as soon as process PID is gone.
answers() {
    "$1" - "$2" "$3" "${4:-0}" <<'PYTHON'
import os, sys, time, urllib.error, urllib.request

url, limit_s, pid = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
end = time.monotonic() + limit_s
while True:
    if pid:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            sys.exit(1)
    try:
        with opener.open(url, timeout=5):
            sys.exit(0)
    except urllib.error.HTTPError:
        if not pid:
            sys.exit(0)  # not ours, but somebody is there
    except OSError:
        pass
    if time.monotonic() >= end:
        sys.exit(1)
    time.sleep(0.1)
PYTHON
}

# stop_running FILE SECONDS: TERM, wait, KILL; then remove FILE. Succeeds when nothing runs.
stop_running() {
    local pid step
    if ! pid="$(running_pid "$1")"; then
        rm -f "$1"
        return 0
    fi
    kill -TERM "$pid" 2>/dev/null || true
    for ((step = 0; step < $2 * 10; step++)); do
        if ! running_pid "$1" >/dev/null; then
            rm -f "$1"
            return 0
        fi
        sleep 0.1
    done
    echo "mmserver (pid $pid) did not stop within $2 s and is killed" >&2
    kill -KILL -- "-$pid" 2>/dev/null || kill -KILL "$pid" 2>/dev/null || true
    rm -f "$1"
}
