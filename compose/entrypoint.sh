#!/bin/sh
# NAME_FILE=PATH becomes NAME=<what is in PATH>: so no secret stands in `docker inspect`.
set -eu
for pair in $(env | sed -n 's/^\(BATCHYARD_[A-Z_]*\)_FILE=.*/\1/p'); do
    [ "$pair" != BATCHYARD_KEY ] || continue  # BATCHYARD_KEY_FILE is an option's own name
    eval "path=\$${pair}_FILE"
    value=$(cat "$path") || exit 1
    export "$pair=$value"
    unset "${pair}_FILE"
done
exec "$@"
