#!/usr/bin/env bash
# Run the checks; all of them, or those named.
#   ./test.sh [lint] [types] [unit] [e2e] [bench] [-- PYTEST ARGUMENTS]     without a name: lint types unit e2e
# Inside tox it uses tox's environment, otherwise .venv, which it sets up. What needs a system package that is missing
# is skipped, and says so.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)"
cd "$here"
checks=()
while [ $# -gt 0 ]; do
    case "$1" in
        lint | types | unit | e2e | bench) checks+=("$1"); shift ;;
        --) shift; break ;;
        -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$here/test.sh"; exit 0 ;;
        *) echo "test.sh: unknown check $1; see --help" >&2; exit 2 ;;
    esac
done
if [ ${#checks[@]} = 0 ]; then checks=(lint types unit e2e); fi

venv="${TOX_ENV_DIR:-}"
if [ -z "$venv" ]; then
    ./setup.sh --test
    venv="${MMSERVER_VENV:-$here/.venv}"
fi
bin="$venv/bin"
unset MMSERVER_VENV # the tests start servers, whose environment is theirs
failed=()

run() {
    echo "+ ${*#"$bin/"}"
    "$@"
}

lint() {
    local status=0
    run "$bin/ruff" check . || status=1
    run "$bin/ruff" format --check . || status=1
    run "$bin/lint-imports" --config setup.cfg --no-logo || status=1
    return $status
}

types() { run "$bin/mypy"; }

unit() { run "$bin/python" -m pytest -q -rsR -m "not e2e" -n 2 "$@"; }

e2e() {
    if [ -z "$(find tests/e2e -name 'test_*.py' 2>/dev/null)" ]; then
        echo "e2e: skipped, there are no end-to-end tests yet"
        return 0
    fi
    if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
        echo "e2e: no Chromium here (apt-get install chromium): tests that need a browser are skipped"
    fi
    run "$bin/python" -m pytest -q -rsR -m e2e -n 2 --dist loadfile "$@"
}

bench() { run "$bin/python" -m benchmarks --smoke; }

for check in "${checks[@]}"; do
    "$check" "$@" || failed+=("$check")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "test.sh: failed: ${failed[*]}" >&2
    exit 1
fi
