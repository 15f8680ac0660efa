#!/bin/sh
# In a NeMo image, as root: adds this package and nothing else. Both Dockerfile and swirl.def run it.
#   containers/install.sh COMMIT
set -eu
cd "$(dirname "$0")/.."
if [ -z "$1" ]; then
    # shellcheck disable=SC2016
    echo 'containers: error: which commit is this? give the build COMMIT=$(git rev-parse HEAD)' >&2
    exit 1
fi
python -m swirl_nemo.versions
echo "$1" >swirl_nemo/COMMIT
# the lock pins what builds the wheel, in an environment that pip throws away
PIP_CONSTRAINT=$PWD/requirements/cpu.lock python -m pip install --quiet --no-cache-dir --no-deps .
containers/inventory.sh python /usr/local/share/swirl_nemo
