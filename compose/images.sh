#!/usr/bin/env bash
# compose/images.sh: the images of compose.yaml, made from OS packages, so that no image registry is needed.
#
# Made again only when what goes into an image has changed; else this takes a second. Where a registry answers, name its
# images instead, here and for compose: REDIS_IMAGE=redis:7 MINIO_IMAGE=minio/minio; those are not made.
# Needs docker, and for the first image root and mmdebstrap. A Debian or Ubuntu host gives its own release and mirrors.
# MinIO is BATCHYARD_MINIO, else the program that Batchyard has built for tests, else one that is built now.
set -euo pipefail
cd "$(dirname "$0")"

BASE=batchyard/base:local
REDIS=batchyard/redis:local
MINIO=batchyard/minio:local
YARD=batchyard/batchyard:local
STAGE=batchyard/dependencies:local
PACKAGES=ca-certificates,python3,python3-venv,tzdata
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/batchyard
export DOCKER_BUILDKIT=0  # the builder that every engine has

say() { echo "images: $*" >&2; }
fail() { say "$*"; exit 1; }
made_from() { docker image inspect --format '{{index .Config.Labels "batchyard.inputs"}}' "$1" 2>/dev/null || true; }
id_of() { docker image inspect --format '{{.Id}}' "$1"; }
digest() { sha256sum | cut -c1-64; }

# build IMAGE DOCKERFILE CONTEXT INPUTS [OPTION…]: with the host's network, for names and proxies that only the host knows.
build() {
    local image=$1 file=$2 context=$3 inputs=$4 begun=$SECONDS name
    shift 4
    for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || set -- "$@" --build-arg "$name"
    done
    docker build -q --network host --build-arg "BASE=$BASE" --label "batchyard.inputs=$inputs" \
        -t "$image" -f "$file" "$@" "$context" >/dev/null 2>"$work/${file##*/}.log" \
        || { cat "$work/${file##*/}.log" >&2; fail "$image could not be made"; }
    touch "$work/built"
    say "$image made in $((SECONDS - begun)) s"
}

# The host's release, from the places that the host takes packages from; elsewhere Debian's own.
base() {
    local suite=bookworm sources="" inputs begun=$SECONDS
    if grep -qE '^ID=(debian|ubuntu)$' /etc/os-release; then
        suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
        sources=$(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
            grep -E " $suite(-updates|-security)? (main|universe)\$" | sort -u)
    fi
    inputs=$(echo "$suite $PACKAGES 1" | digest)
    [ "$(made_from "$BASE")" != "$inputs" ] || return 0
    command -v mmdebstrap >/dev/null || ../.ci/setup compose
    say "$BASE: $suite from its packages, about half a minute"
    mmdebstrap --quiet --variant=apt --include="$PACKAGES" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        "$suite" - ${sources:+-} <<<"$sources" |
        docker import --change "LABEL batchyard.inputs=$inputs" --change 'CMD ["bash"]' - "$BASE" >/dev/null
    say "$BASE made in $((SECONDS - begun)) s"
}

redis() {
    [ -z "${REDIS_IMAGE:-}" ] || [ "$REDIS_IMAGE" = "$REDIS" ] || return 0
    local inputs
    inputs=$({ id_of "$BASE"; cat Dockerfile.redis; } | digest)
    [ "$(made_from "$REDIS")" = "$inputs" ] || build "$REDIS" Dockerfile.redis "$(folder redis)" "$inputs"
}

minio() {
    [ -z "${MINIO_IMAGE:-}" ] || [ "$MINIO_IMAGE" = "$MINIO" ] || return 0
    local inputs context binary=${BATCHYARD_MINIO:-$CACHE/bin/minio}
    if [ ! -x "$binary" ]; then  # built once, in minutes
        [ -x ../.venv/bin/python ] || ../.ci/setup compose
        binary=$(../.venv/bin/python -m batchyard.worker.binaries minio)
    fi
    inputs=$({ id_of "$BASE"; cat Dockerfile.minio "$binary"; } | digest)
    [ "$(made_from "$MINIO")" != "$inputs" ] || return 0
    context=$(folder minio)
    cp "$binary" "$context/minio"
    build "$MINIO" Dockerfile.minio "$context" "$inputs"
}

batchyard() {
    [ -z "${BATCHYARD_IMAGE:-}" ] || [ "$BATCHYARD_IMAGE" = "$YARD" ] || return 0
    local context inputs name file arguments=()
    context=$(folder batchyard)
    mkdir -p "$context/src" "$context/host"
    tar -C .. --exclude=__pycache__ -c pyproject.toml LICENSE broker cache worker autoscaler | tar -C "$context/src" -x
    cp entrypoint.sh "$context/"
    inputs=$({ id_of "$BASE"; cat Dockerfile.batchyard entrypoint.sh
        tar -C "$context/src" --sort=name --mtime=@0 --owner=0 --group=0 --mode=a+rX -c .; } | digest)
    [ "$(made_from "$YARD")" != "$inputs" ] || return 0
    say "$YARD: Batchyard and what it needs, by pip"
    docker run --rm -i --network none "$BASE" python3 -c '
import sys, tomllib
print(*tomllib.load(sys.stdin.buffer)["project"]["dependencies"], sep="\n")' <../pyproject.toml >"$context/requirements.txt"
    cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$context/host/ca.crt"
    for file in /etc/pip.conf "$HOME/.pip/pip.conf" "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf"; do
        [ ! -f "$file" ] || cat "$file"
    done >"$context/host/pip.conf"
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST; do
        [ -z "${!name:-}" ] || arguments+=(--build-arg "$name")
    done
    # A name of its own keeps the stage with the packages, which is most of the work, for the next time.
    build "$STAGE" Dockerfile.batchyard "$context" "" --target dependencies "${arguments[@]}"
    build "$YARD" Dockerfile.batchyard "$context" "$inputs" "${arguments[@]}"
}

folder() { mkdir -p "$work/$1" && echo "$work/$1"; }

docker version --format x >/dev/null 2>&1 || fail "no Docker engine answers: start dockerd"
mkdir -p "$CACHE"
exec 9>"$CACHE/images.lock"  # runs side by side wait for each other
flock 9
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
base
redis & first=$!
minio & second=$!
batchyard
wait "$first"
wait "$second"
# What the new images have replaced, and no container uses.
[ ! -e "$work/built" ] || docker image prune -f --filter label=batchyard.inputs >/dev/null
