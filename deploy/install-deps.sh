#!/bin/sh
# Installs what building, testing and demonstrating weft needs on Debian or
# Ubuntu, and nothing that is there already. Called by `make demo` and
# `make test`. Says what it does; uses sudo only where it is not root.
#
# usage: deploy/install-deps.sh build|test
set -eu

want=${1:-test}
missing=""
PATH="$PATH:/usr/sbin:/sbin"

# need COMMAND PACKAGE: PACKAGE gives COMMAND.
need() {
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
# need_file FILE PACKAGE
need_file() {
    [ -e "$1" ] || missing="$missing $2"
}

need cc gcc
need protoc protobuf-compiler
need_file /usr/include/google/protobuf/descriptor.proto libprotobuf-dev
need_file /usr/include/stdio.h libc6-dev
need ip iproute2
need nft nftables
need ping iputils-ping
need iperf3 iperf3
if [ "$want" = test ]; then
    need etcd etcd-server
    need etcdctl etcd-client
    need iptables iptables
    need jq jq
    need ethtool ethtool
    need curl curl
    # Prometheus and a browser read what the daemon serves.
    need prometheus prometheus
    need chromium chromium
    need dockerd docker.io
    # From Debian 13 on the client is a package of its own.
    need docker "$(apt-cache show docker-cli >/dev/null 2>&1 && echo docker-cli || echo docker.io)"
    need containerd containerd
    need podman podman
    need runc runc
    need_file /bin/busybox busybox-static
    need faketime faketime
    need systemd-analyze systemd
    # A kernel whose bridges tell VLANs apart, where this one's do not.
    unshare -rn ip link add br9 type bridge vlan_filtering 1 2>/dev/null || need linux.uml user-mode-linux
fi
# rustup reads rust-toolchain.toml and brings the very compiler it names.
if ! command -v cargo >/dev/null 2>&1; then
    if apt-cache show rustup >/dev/null 2>&1; then
        missing="$missing rustup"
    else
        echo "install-deps: no cargo, and this distribution has no rustup package: install rustup by hand" >&2
        exit 1
    fi
fi

sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
if [ -n "$missing" ]; then
    echo "install-deps: installing$missing"
    command -v apt-get >/dev/null 2>&1 || {
        echo "install-deps: this script knows apt-get only; install these by hand:$missing" >&2
        exit 1
    }
    # Debian starts etcd, Prometheus and Docker on installation, and Docker changes
    # the machine's packet filter; the tests bring their own of all.
    held=""
    case "$missing" in *etcd-server*) held="$held etcd.service" ;; esac
    case "$missing" in *prometheus*) held="$held prometheus.service" ;; esac
    case "$missing" in *docker.io*) held="$held docker.service docker.socket containerd.service" ;; esac
    case "$missing" in *containerd*) held="$held containerd.service" ;; esac
    case "$missing" in *podman*) held="$held podman.service podman.socket podman-restart.service podman-auto-update.timer" ;; esac
    [ -d /run/systemd/system ] || held=""
    # shellcheck disable=SC2086 # a list of units
    [ -z "$held" ] || $sudo systemctl mask $held
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get update -q
    # shellcheck disable=SC2086 # a list of packages
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
    if [ -n "$held" ]; then
        # shellcheck disable=SC2086 # a list of units
        $sudo systemctl unmask $held
        # shellcheck disable=SC2086
        $sudo systemctl disable $held || true
    fi
fi

if [ "$want" = test ] && ! command -v cargo-deny >/dev/null 2>&1; then
    echo "install-deps: building cargo-deny (a few minutes, once)"
    cargo install --locked cargo-deny
fi
