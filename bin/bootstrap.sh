# shellcheck shell=sh
# bootstrap ENV LOCK: see to it that an environment holds exactly LOCK, making it when it is not there.
# The environment is made under another name and renamed; the lock's copy inside it says what it was made from.
bootstrap() {
    _env=$1 _lock=$2
    _current "$_env" "$_lock" || _make_environment "$_env" "$_lock" >&2
    # So that bin/envbuilder needs no program to tell the same next time: the lock's time is its copy's, and the
    # interpreter's link goes away with the very version that it leads to. Where it may not write, it asks again.
    ln -sf "$(readlink -f "$_env/bin/python")" "$_env/bin/python" 2>/dev/null || :
    touch -r "$_lock" "$_env/lock.txt" 2>/dev/null || :
}

# Whether the environment was made from this lock and its interpreter is still there, in the version it was made for:
# an upgrade of the system may have taken it away. No program but cmp and readlink is run.
_current() {
    cmp -s "$2" "$1/lock.txt" || return 1
    _base=$(readlink -f "$1/bin/python") && [ -x "$_base" ] || return 1
    case ${_base##*/} in
        python3.*) [ -d "$1/lib/${_base##*/}" ] ;;
    esac
}

_make_environment() {
    _find_python
    _clear_leftovers "$1"
    _new="$1.new.$$"
    # A shell does not run its EXIT trap when a signal ends it: INT and TERM must end it by hand.
    trap 'rm -rf "$_new"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    mkdir "$_new" || {
        echo "error: envbuilder cannot make its own environment in $1." >&2
        echo "  next: put the checkout where you may write, or install it (uv tool install .)" >&2
        exit 4
    }
    echo "envbuilder: making its own environment in $1 (once) …"
    # -I: no PYTHONPATH and no user site may have a say in what is meant to be the lock's content alone.
    "$_python" -I -m venv "$_new" || {
        echo "error: $_python cannot make a virtual environment." >&2
        echo "  next: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2
        exit 4
    }
    PIP_USER=0 "$_new/bin/python" -I -m pip install -qq --disable-pip-version-check --no-deps --only-binary :all: \
        --require-hashes -r "$2" || {
        echo "error: the packages of $2 could not be installed." >&2
        echo "  next: check the network and pip's settings (pip config list), then run the same command again" >&2
        exit 4
    }
    # What Python 3.11 puts beside pip, and no lock names: it runs code each time that a Python starts.
    "$_new/bin/python" -I -m pip uninstall -qq --yes setuptools
    cp "$2" "$_new/lock.txt"
    # Two first uses at once: what the other one made is as good, and its command may be running in it already.
    if ! _current "$1" "$2"; then
        rm -rf "$1"
        mv -T "$_new" "$1" 2>/dev/null || _current "$1" "$2" || {
            echo "error: envbuilder's own environment could not be moved to $1." >&2
            exit 4
        }
    fi
    rm -rf "$_new"
    trap - EXIT INT TERM HUP
}

# What a killed shell was making; a shell that is still at work has its number in the name.
_clear_leftovers() {
    for _left in "$1".new.*; do
        if [ -d "$_left" ] && ! kill -0 "${_left##*.}" 2>/dev/null; then
            rm -rf "$_left"
        fi
    done
}

_find_python() {
    if [ -n "${ENVBUILDER_PYTHON-}" ]; then
        _python=$ENVBUILDER_PYTHON
        _new_enough && return
        echo "error: $ENVBUILDER_PYTHON, which ENVBUILDER_PYTHON names, is no Python 3.11 or newer." >&2
        exit 2
    fi
    for _python in python3 python3.14 python3.13 python3.12 python3.11; do
        _new_enough && return
    done
    echo "error: envbuilder needs Python 3.11 or newer, and found none." >&2
    echo "  next: install one (Debian 12, Ubuntu 24.04: apt install python3 python3-venv), or name it in ENVBUILDER_PYTHON" >&2
    exit 2
}

_new_enough() {
    "$_python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}
