#!/bin/sh
# Records what flannel's own script makes of each case, in a network namespace.
#
# usage: tests/golden/docker-opts/record.sh PATH/TO/mk-docker-opts.sh
#
# A case is a directory with `args`; `subnet.env`, `environment` and `routes`
# (lines for `ip -batch`) where it has them. Recorded are `exit` and, where the
# script wrote one, `docker_opts.env`.
set -eu
SCRIPT=$(realpath "$1")
export SCRIPT
cd "$(dirname "$0")"
for case in */; do
    CASE=$(realpath "$case")
    ARGS="-f ./subnet.env -d ./docker_opts.env $(cat "$CASE/args")"
    export CASE ARGS
    work=$(mktemp -d)
    rm -f "$CASE/docker_opts.env"
    touch "$work/environment"
    for file in subnet.env environment; do
        [ ! -e "$CASE/$file" ] || cp "$CASE/$file" "$work/"
    done
    # shellcheck disable=SC2016 # the inner shells expand these
    (cd "$work" && unshare -n sh -ec '
        ip link add eth0 type veth peer name eth1
        ip addr add 192.168.77.1/24 dev eth0
        ip link set eth1 up; ip link set eth0 up
        [ ! -e "$CASE/routes" ] || ip -batch "$CASE/routes"
        xargs -d "\n" -a environment sh -c '\''env -i PATH="$PATH" "$@" "$SCRIPT" $ARGS; echo $? >exit'\'' sh
    ' >/dev/null 2>&1)
    mv "$work/exit" "$CASE/"
    [ ! -e "$work/docker_opts.env" ] || mv "$work/docker_opts.env" "$CASE/"
    rm -rf "$work"
done
