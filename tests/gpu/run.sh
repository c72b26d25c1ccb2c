#!/usr/bin/env bash
# Run the tests that need a GPU and print a Markdown table of seconds and memory: bash tests/gpu/run.sh [FOLDER of wheels]
#
# Needs a CUDA build of PyTorch and no network. Wheels of what the machine lacks are installed into a folder that is
# deleted afterwards, without their dependencies. Without a GPU every test says why it is skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ $# -gt 0 ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$1"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
if [ $# -gt 0 ] || ! python3 -c "from importlib.metadata import version; version('db3d_nerfstudio')" 2>/dev/null; then
    # Methods are found by their entry points: the package has to be installed, wherever it lies.
    python3 -m pip install -q --no-index --no-deps --no-build-isolation -e .
fi
python3 -m pytest tests/gpu -m gpu -rs -q --durations=0 --durations-min=5
