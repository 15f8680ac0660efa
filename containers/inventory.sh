#!/bin/sh
# What an image holds, written while it is built: sbom.json (CycloneDX), python.lock and debian.lock.
#   containers/inventory.sh PYTHON FOLDER
set -eu
python=$1 folder=$2
tool=$(mktemp -d)
# an environment of its own, so that the tool is neither listed nor left behind
"$python" -m venv --without-pip "$tool"
"$python" -m pip --python "$tool/bin/python" install --quiet --no-deps -r "$(dirname "$0")/sbom.lock"
mkdir -p "$folder"
"$tool/bin/python" -m cyclonedx_py environment "$python" --output-reproducible --no-validate --output-file "$folder/sbom.json"
"$python" -m pip freeze --all >"$folder/python.lock"
dpkg-query --show --showformat='${Package}=${Version}\n' >"$folder/debian.lock"
rm -r "$tool"
