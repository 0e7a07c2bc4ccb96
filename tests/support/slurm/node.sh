#!/bin/bash
# Makes a host of the namespaces that it is started in, and runs slurmd on it.
# Usage: node.sh NAME ADDRESS/BITS TMP SHARED...
set -e
name=$1 address=$2 temporary=$3
shift 3

ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.01; done
ip addr add "$address" dev eth0
# There is no default route: it sees what is on the cluster's network, and no more.
ip link set eth0 up
hostname "$name"

# A temporary directory of its own, in which the shared ones are where they were.
private=$1/tmp.$name
mkdir -p "$private"
mount -t tmpfs -o mode=1777 tmpfs "$private"
for directory in "$@"; do
    mkdir -p "$private${directory#"$temporary"}"
    mount --rbind "$directory" "$private${directory#"$temporary"}"
done
mount --move "$private" "$temporary"

cd /
slurmd -D -N "$name" &
wait $!
