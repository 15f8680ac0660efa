#!/usr/bin/env bash
# An image as the squashfs file that Pyxis and Enroot start from. Not run by this project: Debian has no enroot.
#   containers/enroot.sh dockerd://swirl-nemo:gpu swirl.sqsh         from the local Docker daemon
#   containers/enroot.sh docker://HOST#NAME/swirl-nemo:gpu swirl.sqsh
#   srun --container-image=$PWD/swirl.sqsh --container-mounts=/data,$PWD/runs:/home/swirl/runs swirl train ...
set -euo pipefail
if [ $# -ne 2 ]; then
    echo "usage: containers/enroot.sh IMAGE FILE.sqsh" >&2
    exit 2
fi
image=$1 file=$2
fresh=$(dirname "$file")/.$(basename "$file").$$
trap 'rm -f "$fresh"' EXIT
enroot import --output "$fresh" "$image"
# whole or not at all: jobs may be starting from it
mv "$fresh" "$file"
