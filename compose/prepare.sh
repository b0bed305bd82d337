#!/usr/bin/env bash
# compose/prepare.sh: all that compose.yaml needs on this host: images, folders, secrets, settings.
#
# May be called again at any time: what is there stays. Run it as root: the node needs folders that it owns.
#   BATCHYARD_ROOT       where the yard's data lies (/var/lib/batchyard)
#   BATCHYARD_SECRETS    where its secrets lie (compose/.secrets)
#   BATCHYARD_ENV_FILE   where the settings are written that compose reads (compose/.env)
# What is set here is written there at the first run, and read from there at later ones.
set -euo pipefail
cd "$(dirname "$0")"

settings=${BATCHYARD_ENV_FILE:-$PWD/.env}
say() { echo "prepare: $*" >&2; }

# setting NAME DEFAULT: the environment's, else what was written before, else the default.
setting() {
    local written
    written=$(sed -n "s/^$1=//p" "$settings" 2>/dev/null | tail -n 1 || true)
    printf -v "$1" %s "${!1:-${written:-$2}}"
    values+="$1=${!1}"$'\n'
    known+="|$1="
}

values= known='#'
setting COMPOSE_PROJECT_NAME batchyard
if [ "$(id -u)" = 0 ]; then
    setting BATCHYARD_UID 10001  # whose processes are all but the nodes': nobody of this host
    setting BATCHYARD_GID 10001
else
    setting BATCHYARD_UID "$(id -u)"
    setting BATCHYARD_GID "$(id -g)"
fi
setting BATCHYARD_ROOT /var/lib/batchyard
setting BATCHYARD_SECRETS "$PWD/.secrets"
setting BATCHYARD_NODE "$(uname -n)"
setting BATCHYARD_REDIS_PORT 6379
setting BATCHYARD_MINIO_PORT 9000
setting BATCHYARD_FLOWER_PORT 5555
setting BATCHYARD_NEAR_GIB 20
setting BATCHYARD_COPIES_MEMORY_MIB "$(awk '/^MemTotal:/ {print int($2 / 1024 / 16)}' /proc/meminfo)"
setting BATCHYARD_ENGINE_ROOT "$(docker info --format '{{.DockerRootDir}}')"
for name in REDIS_IMAGE MINIO_IMAGE BATCHYARD_IMAGE; do
    if [ -n "${!name:-}" ] || grep -q "^$name=" "$settings" 2>/dev/null; then setting "$name" ""; export "${name?}"; fi
done
for path in "$BATCHYARD_ROOT" "$BATCHYARD_SECRETS"; do
    [[ $path =~ ^/[A-Za-z0-9._/-]+$ ]] || { say "\"$path\" must be an absolute path of letters, digits, . _ - and /"; exit 2; }
done

docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || ../.ci/setup compose
./images.sh

umask 077
mkdir -p "$BATCHYARD_ROOT"/{node,node-gpu} "$BATCHYARD_SECRETS"
mkdir -p "$BATCHYARD_ROOT"/{redis,minio-durable,minio-near}
if [ "$(id -u)" = 0 ]; then
    chown "$BATCHYARD_UID:$BATCHYARD_GID" "$BATCHYARD_ROOT"/{redis,minio-durable,minio-near} "$BATCHYARD_SECRETS"
fi
if [ ! -e "$BATCHYARD_ROOT/yard.yaml" ]; then  # queues, and the largest node that there may be: this machine
    gpus=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | wc -l)
    memory=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
    disk=$(df -P -B 1073741824 "$BATCHYARD_ROOT" | awk 'NR == 2 {print $2}')
    cat >"$BATCHYARD_ROOT/yard.yaml.new" <<YAML
queues:
  cpu: {environments: [here]}
  gpu: {environments: [here]}
environments:
  here: {vcpus: $(nproc), memory_mib: $memory, gpus: $gpus, disk_gib: $disk}
YAML
    chmod 644 "$BATCHYARD_ROOT/yard.yaml.new"
    mv "$BATCHYARD_ROOT/yard.yaml.new" "$BATCHYARD_ROOT/yard.yaml"
fi
docker run --rm --network none --user "$BATCHYARD_UID:$BATCHYARD_GID" --cap-drop ALL --security-opt no-new-privileges \
    --volume "$BATCHYARD_SECRETS:/secrets" --volume "$PWD/make_secrets.py:/make_secrets.py:ro" \
    "${BATCHYARD_IMAGE:-batchyard/batchyard:local}" python /make_secrets.py /secrets --shown-as "$BATCHYARD_SECRETS" \
    --scratch "$BATCHYARD_ROOT/node" \
    --redis-port "$BATCHYARD_REDIS_PORT" --minio-port "$BATCHYARD_MINIO_PORT" --flower-port "$BATCHYARD_FLOWER_PORT"
others=$(grep -vE "^($known)" "$settings" 2>/dev/null || true)
printf '# Written by prepare.sh; read by compose. Change it, run prepare.sh again, then start the stack again.\n%s%s\n' \
    "$values" "$others" >"$settings.new"
mv "$settings.new" "$settings"
say "ready: data in $BATCHYARD_ROOT, secrets in $BATCHYARD_SECRETS, settings in $settings"
