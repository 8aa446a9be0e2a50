# shellcheck shell=bash
# What run, test, install-runtimes and .ci/run share. Sourced, never run.
# Everything said here goes to stderr: stdout belongs to the command that is run.

# Symlinks are followed by the callers, so this file's own place is the checkout's.
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
CGROUP_ROOT="${KAVACH_CGROUP_ROOT:-/sys/fs/cgroup}"

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
    local file="$CGROUP_ROOT/unified/cgroup.controllers" line=''
    if [ -r "$file" ]; then read -r line <"$file" || true; fi
    printf '%s' "$line"
}

hugetlb_unclaimed() { [[ " $(hybrid_controllers) " == *" hugetlb "* ]]; }

# All that can change the answer of install-runtimes, without starting anything.
runtime_state() {
    local tool
    if is_root; then printf 'root'; else printf 'user'; fi
    printf ' %s' "$@" # the options it was called with
    for tool in "${RUNTIMES[@]}" cc; do printf ' %s' "$(find_tool "$tool" || echo -)"; done
    if hugetlb_unclaimed; then printf ' hybrid'; fi
}

# Ask install-runtimes only when something changed since it was last asked: it starts each
# runtime, and a plain user must not read at every run what is missing. What it could not get
# is no reason to stop: kavach goes on with the runtimes that are there, and says so itself.
ensure_runtimes() {
    local state note="$SETUP_DIR/runtimes${1:-}" noted=''
    if [ -r "$note" ]; then read -r noted <"$note" || true; fi
    if [ "$(runtime_state "$@")" = "$noted" ]; then return 0; fi
    "$ROOT/scripts/install-runtimes" "$@" || say "going on without"
    state="$(runtime_state "$@")"
    make_setup_dir
    printf '%s\n' "$state" 2>/dev/null >"$SETUP_DIR/runtimes${1:-}" || true
}

# --- the virtual environment --------------------------------------------------------------------

VENV="$ROOT/.venv"
OWNER_FILE="$VENV/.kavach-owner" # "making", then "ready ROOT": tells a half-made or moved one

# Prints a hash over what the installation was made from: where, with which interpreter, and the
# files that decide what is installed. No Python is started: this runs at every call.
fingerprint() (
    cd "$ROOT" || return
    shopt -s nullglob
    {
        printf '%s\n' "$ROOT"
        stat -L -c '%s %Y' "$VENV/bin/python" 2>/dev/null || true
        sha256sum -- pyproject.toml plugins/*/pyproject.toml plugins/*/hatch_build.py \
            plugins/kavach_guest/{agent,launcher}/*.[ch]
    } | sha256sum
)

# The guest's agent is built into the source tree, where a `git clean` may take it away.
agent_is_built() {
    [ ! -d "$ROOT/plugins/kavach_guest/agent" ] ||
        compgen -G "$ROOT/plugins/kavach_guest/src/kavach_guest/_bin/*" >/dev/null
}

# stamped FINGERPRINT PART...: is each part installed, from this very state of the checkout?
stamped() {
    local want=$1 part have
    shift
    for part in "$@"; do
        have=''
        read -r have 2>/dev/null <"$VENV/.kavach-stamp-$part" || return 1
        [ "$have" = "$want" ] || return 1
    done
    [ -x "$VENV/bin/kavach" ] && agent_is_built
}

is_new_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if type -P "$name" >/dev/null && is_new_python "$name"; then
            type -P "$name"
            return
        fi
    done
    die "needs Python 3.11 or newer, found $(python3 --version 2>/dev/null || echo none): install python3.11 or newer (Debian 12, Ubuntu 24.04 and later: apt-get install python3)"
}

venv_is_usable() {
    local owner=''
    if [ -e "$OWNER_FILE" ]; then
        read -r owner <"$OWNER_FILE" || true
        [ "$owner" = "ready $ROOT" ] || return 1
    fi
    # One without our mark is somebody's own: it serves if it works.
    is_new_python "$VENV/bin/python" && find_installer
}

# Sets INSTALLER to a command that installs into .venv: its own pip, or, where Debian's python
# came without, another pip or uv that is at hand.
find_installer() {
    local pip
    INSTALLER=("$VENV/bin/python" -m pip install)
    if "$VENV/bin/python" -c 'import pip' 2>/dev/null; then return 0; fi
    for pip in pip3 pip; do
        INSTALLER=("$pip" --python "$VENV/bin/python" install)
        if "$pip" --python "$VENV/bin/python" --version >/dev/null 2>&1; then return 0; fi
    done
    INSTALLER=(uv pip install --python "$VENV/bin/python")
    uv --version >/dev/null 2>&1
}

# Debian ships python3 without ensurepip.
has_ensurepip() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

make_venv() {
    local python package
    python="$(find_python)"
    package="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if ! has_ensurepip "$python" && is_root && have_apt; then
        step python-venv "installing $package" apt_install "$package"
    fi
    rm -rf -- "$VENV"
    mkdir -- "$VENV"
    echo making >"$OWNER_FILE"
    if has_ensurepip "$python"; then
        step venv "making .venv" "$python" -m venv "$VENV"
    else
        step venv "making .venv" "$python" -m venv --without-pip "$VENV"
    fi
    find_installer || die "this Python has no pip; run as root: apt-get install $package"
}

install_packages() {
    step "$1" "installing $2" env PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "${INSTALLER[@]}" "${@:3}"
}

install_kavach() {
    local project args=(-e "$ROOT")
    for project in "$ROOT"/plugins/*/pyproject.toml; do
        args+=(-e "$(dirname -- "$project")")
    done
    install_packages kavach "kavach and its plugins" "${args[@]}"
}

# pip learnt --group only lately.
group_requirements() {
    "$VENV/bin/python" - "$ROOT/pyproject.toml" "$1" <<'PYTHON'
import sys, tomllib

with open(sys.argv[1], "rb") as file:
    groups = tomllib.load(file)["dependency-groups"]

def requirements(name):
    for entry in groups[name]:
        if isinstance(entry, dict):
            yield from requirements(entry["include-group"])
        else:
            yield entry

print(*requirements(sys.argv[2]), sep="\n")
PYTHON
}

install_group() {
    local text requirements
    text="$(group_requirements "$1")"
    mapfile -t requirements <<<"$text"
    install_packages "group-$1" "what the $1 group needs" "${requirements[@]}"
}

install_part() {
    if [ "$1" = base ]; then install_kavach; else install_group "$1"; fi
}

# A directory can be locked too: nothing to clean up, and the lock dies with its holder.
lock_setup() {
    mkdir -p "$SETUP_DIR" 2>/dev/null && [ -w "$SETUP_DIR" ] && [ -w "$ROOT" ] ||
        die "cannot write to $ROOT, and its .venv is not ready: run this once as its owner"
    exec 9<"$SETUP_DIR"
    flock -n 9 && return
    say "waiting for another set-up of this checkout to end"
    flock 9
}

set_up() {
    local part
    lock_setup
    venv_is_usable || make_venv
    if ! stamped "$(fingerprint)" base; then rm -f -- "$VENV"/.kavach-stamp-*; fi
    for part in "$@"; do
        stamped "$(fingerprint)" "$part" && continue # another run did while this one waited
        install_part "$part"
        fingerprint >"$VENV/.kavach-stamp-$part"
    done
    printf 'ready %s\n' "$ROOT" >"$OWNER_FILE"
    exec 9<&-
}

# ensure_ready GROUP...: .venv holds kavach, its plugins and these dependency groups.
ensure_ready() {
    stamped "$(fingerprint)" base "$@" || set_up base "$@"
}
