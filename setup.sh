#!/usr/bin/env bash
# Install mmserver into .venv beside this script; quiet, and quick when nothing changed.
#   ./setup.sh [--demo] [--test]      what `start.sh --demo` and `test.sh` need besides
#   MMSERVER_VENV=DIR                 use this virtual environment instead of .venv
#   PYTHON=python3.12                 make .venv with this Python
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
venv="${MMSERVER_VENV:-$here/.venv}"
stamp="$venv/.mmserver-setup"
extras=""
rank=0

for argument in "$@"; do
    case "$argument" in
        --demo) if [ "$rank" -lt 1 ]; then rank=1 extras="[demo]"; fi ;;
        --test) rank=2 extras="[demo,test]" ;;
        -h | --help) sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) echo "setup.sh: unknown argument $argument; see --help" >&2; exit 2 ;;
    esac
done

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup.sh: Python 3.11 or newer is needed; ${PYTHON:-python3} is $("${PYTHON:-python3}" -V 2>&1 || true)." >&2
    echo "setup.sh: install one, or name it: PYTHON=/path/to/python3.11 ./setup.sh" >&2
    return 1
}

# The stamp: what was installed, where, by which Python, and with how many extras (a larger rank includes the smaller).
state() {
    "$venv/bin/python" - "$here" <<'PYTHON' 2>/dev/null
import hashlib, pathlib, sys
here = pathlib.Path(sys.argv[1])
content = b"\0".join((here / name).read_bytes() for name in ("setup.cfg", "pyproject.toml"))
print(hashlib.sha256(content + sys.version.encode() + str(here).encode() + sys.prefix.encode()).hexdigest())
PYTHON
}

if [ -f "$stamp" ]; then
    { read -r old_rank && read -r old_state; } <"$stamp" || old_state=""
    if [ -n "$old_state" ] && [ "$old_state" = "$(state)" ] && [ "${old_rank:--1}" -ge "$rank" ]; then
        exit 0
    fi
    if [ "${old_rank:-0}" = 2 ]; then rank=2 extras="[demo,test]"; fi
    if [ "${old_rank:-0}" = 1 ] && [ "$rank" = 0 ]; then rank=1 extras="[demo]"; fi
fi

if [ -n "${MMSERVER_VENV:-}" ]; then
    if [ ! -x "$venv/bin/python" ]; then
        echo "setup.sh: MMSERVER_VENV: there is no virtual environment in $venv" >&2
        exit 1
    fi
elif ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then # none yet, half made, or its Python is gone
    python="$(find_python)"
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "setup.sh: $python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi

echo "Installing mmserver into $venv (a minute or two the first time)" >&2
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
rm -f "$stamp"
if ! (cd "$here" && PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip install -e ".$extras") >"$log" 2>&1; then
    cat "$log" >&2
    echo "setup.sh: the installation failed; the reason is above" >&2
    exit 1
fi
new_state="$(state)"
printf '%s\n%s\n' "$rank" "$new_state" >"$stamp"
