#!/usr/bin/env bash
# Builds Dockerfile.cpu of the commit that is checked out with Debian's podman, as any user: no root, no daemon.
#   containers/build_cpu.sh [PODMAN_BUILD_OPTION]...                on the base that Dockerfile.cpu names
#   containers/build_cpu.sh --own-base [PODMAN_BUILD_OPTION]...     on one made of Debian's packages by mmdebstrap, where
#                                                                   no image can be pulled
# Where packages come through a mirror or a proxy, say so for the build alone, for example
#   --volume /etc/pip.conf:/etc/pip.conf:ro --volume /etc/ssl/certs:/etc/ssl/certs:ro
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "$(git status --porcelain)" ]; then
    echo "containers/build_cpu.sh: error: an image is of a commit, and there are uncommitted changes: commit them" >&2
    exit 2
fi
commit=$(git rev-parse HEAD)
context=$(mktemp -d)
trap 'rm -r "$context"' EXIT
git archive "$commit" | tar --extract --directory "$context"

if [ "${1-}" = --own-base ]; then
    shift
    base=localhost/debian-python:bookworm
    podman image exists $base || mmdebstrap --quiet --variant=minbase \
        --include=ca-certificates,python3,python3-venv bookworm - | podman import --quiet - $base
    set -- --build-arg "BASE=$base" "$@"
fi
# chroot: runs where a container may not make namespaces of its own
podman build --isolation chroot --format docker --file containers/Dockerfile.cpu --build-arg "COMMIT=$commit" \
    --tag "swirl-nemo:cpu-$commit" --tag swirl-nemo:cpu "$@" "$context"
