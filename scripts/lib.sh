# shellcheck shell=bash
# What run, test, install-runtimes and .ci/run share. Sourced, never run.
# Everything said here goes to stderr: stdout belongs to the command that is run.

ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
SETUP_DIR="${KAVACH_SETUP_DIR:-$ROOT/.kavach-setup}"

say() { printf 'kavach: %s\n' "$*" >&2; }

die() {
    say "$@"
    exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }

# Logs go beside the checkout, or, where that is read-only, to a directory of their own.
make_setup_dir() {
    if mkdir -p "$SETUP_DIR" 2>/dev/null && [ -w "$SETUP_DIR" ]; then
        return
    fi
    SETUP_DIR="$(mktemp -d "${TMPDIR:-/tmp}/kavach-setup.XXXXXX")"
}

# --- progress -------------------------------------------------------------------------------

# On a terminal: one line, rewritten each second until its parent stops it or is gone.
tick() {
    local title=$1 parent=$2 seconds=0
    while kill -0 "$parent" 2>/dev/null; do
        printf '\r\033[Kkavach: %s ... %d s' "$title" "$seconds" >&2
        sleep 1
        seconds=$((seconds + 1))
    done
}

# step NAME TITLE COMMAND...: run COMMAND with its output in NAME.log, show the log's tail if it
# fails. COMMAND stays in the foreground so that Ctrl-C reaches it; only the ticker is behind.
# It runs as a condition, where bash ignores `set -e`: functions given here chain with && or ||.
step() {
    local name=$1 title=$2 ticker='' status=0
    shift 2
    make_setup_dir
    local log="$SETUP_DIR/$name.log"
    if [ -t 2 ]; then
        tick "$title" $$ &
        ticker=$!
    else
        say "$title ..."
    fi
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ -n "$ticker" ]; then
        kill "$ticker" 2>/dev/null || true
        wait "$ticker" 2>/dev/null || true
        printf '\r\033[K' >&2
    fi
    if [ "$status" -ne 0 ]; then
        say "$title: failed ($status). The end of $log:"
        tail -n 25 "$log" | sed 's/^/    /' >&2
    fi
    return "$status"
}

# --- packages of the distribution -------------------------------------------------------------

have_apt() { command -v apt-get >/dev/null && command -v dpkg >/dev/null; }

apt_quiet() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"
}

# Without `update` first: it is slow, and on most machines the lists at hand do.
apt_install() {
    apt_quiet install --no-install-recommends "$@" ||
        { apt_quiet update && apt_quiet install --no-install-recommends "$@"; }
}

# --- runtimes ---------------------------------------------------------------------------------

RUNTIMES=(runc crun runsc)
RUNSC_OLDEST=20240729 # the first distribution build with the systrap platform

# A plain user's PATH on Debian lacks the sbin folders, which is where runc is.
find_tool() {
    PATH="${KAVACH_RUNTIME_PATH:-$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin}" \
        type -P -- "$1"
}

# The date in "0.0~20240729.0-4" or "release-20240729.0"; nothing for versions without one.
runsc_date() {
    if [[ $1 =~ (20[0-9]{6}) ]]; then printf '%s\n' "${BASH_REMATCH[1]}"; fi
}

# The first line of `--version`, bounded in time: a broken runtime must not hang the set-up.
tool_version() { timeout 10 "$1" --version 2>/dev/null </dev/null | sed -n 1p || true; }

# A build without a date in its version is somebody's own: ask it what it can do.
runsc_is_new_enough() {
    local date
    date="$(runsc_date "$(tool_version "$1")")"
    if [ -n "$date" ]; then
        [ "$date" -ge "$RUNSC_OLDEST" ]
    else
        timeout 10 "$1" flags 2>&1 </dev/null | grep -q systrap
    fi
}

# crun refuses a host where both cgroup versions hold controllers. Prints what v2 still holds
# there; nothing on a host that is purely v1 or purely v2.
hybrid_controllers() {
    local file="${KAVACH_CGROUP_ROOT:-/sys/fs/cgroup}/unified/cgroup.controllers" line=''
    if [ -r "$file" ]; then read -r line <"$file" || true; fi
    printf '%s' "$line"
}

hugetlb_unclaimed() { [[ " $(hybrid_controllers) " == *" hugetlb "* ]]; }
