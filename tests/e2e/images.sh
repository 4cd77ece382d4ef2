#!/usr/bin/env bash
# Makes sure of the public images that the Dockerfile and the Compose files name.
#
#   tests/e2e/images.sh           pulls those that are missing
#   tests/e2e/images.sh --local   makes stand-ins for those that are missing from Debian's packages,
#                                 for machines without a registry of images; needs root, debootstrap
#
# A stand-in takes the same variables and commands as far as this project uses them, and trusts the
# certificates that this machine trusts.
set -euo pipefail

SUITE=bookworm # with Python 3.11, Redis 7.0, PostgreSQL 15
CERTIFICATES=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
PYTHON=python:3.11-slim

missing() {
  ! docker image inspect "$1" >/dev/null 2>&1
}

make_python() {
  local root
  root=$(mktemp -d)
  trap 'rm -rf "$root"' RETURN
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv \
    "$SUITE" "$root" >"$root.log" || { tail -n 30 "$root.log" >&2; return 1; }
  rm -rf "$root.log" "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  ln -s ../../bin/python3 "$root/usr/local/bin/python"
  cp "$CERTIFICATES" "$root/etc/ssl/certs/ca-certificates.crt"
  printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$root/etc/pip.conf"
  tar --directory "$root" --create . | docker import --change 'CMD ["python3"]' - "$1" >/dev/null
}

make_redis() {
  docker build --quiet --tag "$1" - >/dev/null <<DOCKERFILE
FROM $PYTHON
RUN apt-get update -q && apt-get install -qy --no-install-recommends redis-server \
 && mkdir /data && chown redis /data
VOLUME /data
WORKDIR /data
USER redis
CMD ["redis-server", "--protected-mode", "no"]
DOCKERFILE
}

make_postgres() {
  local context
  context=$(mktemp -d)
  trap 'rm -rf "$context"' RETURN
  cat >"$context/entrypoint" <<'SCRIPT'
#!/bin/sh
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb --username "$POSTGRES_USER" --pwfile /tmp/password --auth-local trust --auth-host scram-sha-256
  rm /tmp/password
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  pg_ctl start -w -o "-c listen_addresses=''"
  [ "$POSTGRES_DB" = postgres ] || createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl stop -w
fi
exec "$@" -c listen_addresses='*'
SCRIPT
  chmod +x "$context/entrypoint"
  cat >"$context/Dockerfile" <<DOCKERFILE
FROM $PYTHON
RUN apt-get update -q && apt-get install -qy --no-install-recommends postgresql \
 && mkdir -p /var/lib/postgresql/data && chown postgres /var/lib/postgresql/data
COPY entrypoint /usr/local/bin/
ENV PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
VOLUME /var/lib/postgresql/data
USER postgres
STOPSIGNAL SIGINT
ENTRYPOINT ["entrypoint"]
CMD ["postgres"]
DOCKERFILE
  docker build --quiet --tag "$1" "$context" >/dev/null
}

make_rabbitmq() {
  local context
  context=$(mktemp -d)
  trap 'rm -rf "$context"' RETURN
  cat >"$context/entrypoint" <<'SCRIPT'
#!/bin/sh
set -eu
cat >/etc/rabbitmq/rabbitmq.conf <<CONF
default_user = $RABBITMQ_DEFAULT_USER
default_pass = $RABBITMQ_DEFAULT_PASS
default_vhost = $RABBITMQ_DEFAULT_VHOST
CONF
exec "$@"
SCRIPT
  chmod +x "$context/entrypoint"
  cat >"$context/Dockerfile" <<DOCKERFILE
FROM $PYTHON
RUN apt-get update -q && apt-get install -qy --no-install-recommends rabbitmq-server \
 && chown -R rabbitmq /etc/rabbitmq /var/lib/rabbitmq
COPY entrypoint /usr/local/bin/
ENV HOME=/var/lib/rabbitmq RABBITMQ_LOGS=- PATH=/usr/lib/rabbitmq/bin:/usr/local/bin:/usr/bin:/bin
VOLUME /var/lib/rabbitmq
USER rabbitmq
ENTRYPOINT ["entrypoint"]
CMD ["rabbitmq-server"]
DOCKERFILE
  docker build --quiet --tag "$1" "$context" >/dev/null
}

for image in "$PYTHON" redis:7 postgres:16 rabbitmq:3; do
  if ! missing "$image"; then
    echo "$image is there"
  elif [ "${1:-}" = --local ]; then
    echo "$image is made from Debian's packages"
    "make_${image%%:*}" "$image"
  else
    docker pull "$image"
  fi
done
