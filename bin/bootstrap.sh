# shellcheck shell=sh
# bootstrap ENV LOCK: print the interpreter of an environment that holds exactly LOCK, making it when it is not there.
# The environment is made under another name and renamed; the lock's copy inside it says what it was made from.
bootstrap() {
    _env=$1 _lock=$2
    if ! cmp -s "$_lock" "$_env/lock.txt"; then
        _make_environment "$_env" "$_lock" >&2
    fi
    printf '%s\n' "$_env/bin/python"
}

_make_environment() {
    _find_python
    _new="$1.new.$$"
    trap 'rm -rf "$_new"' EXIT
    echo "envbuilder: making its own environment in $1 (once) …"
    "$_python" -m venv "$_new" || {
        echo "error: $_python cannot make a virtual environment." >&2
        echo "  next: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2
        exit 4
    }
    "$_new/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --only-binary :all: \
        --require-hashes -r "$2" || {
        echo "error: the packages of $2 could not be installed." >&2
        echo "  next: check the network and pip's settings (pip config list), then run the same command again" >&2
        exit 4
    }
    cp "$2" "$_new/lock.txt"
    rm -rf "$1"
    # Two first uses at once: the other one's rename may have come first, with the same content.
    mv -T "$_new" "$1" 2>/dev/null || cmp -s "$2" "$1/lock.txt"
    trap - EXIT
}

_find_python() {
    for _python in ${ENVBUILDER_PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            return
        fi
    done
    echo "error: envbuilder needs Python 3.11 or newer, and found none." >&2
    echo "  next: install one (Debian 12, Ubuntu 24.04: apt install python3 python3-venv), or name it in ENVBUILDER_PYTHON" >&2
    exit 2
}
