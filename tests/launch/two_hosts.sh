#!/bin/bash
# two_hosts.sh COMMAND0 COMMAND1: runs a command on each of two hosts, node0 and node1, and ends with their exit codes.
#
# The hosts are network namespaces with names of their own, joined by a pair of virtual interfaces; everything is
# in a user, mount and process namespace, so root is not needed and nothing is left behind.
set -euo pipefail

if [ "${1:-}" != inside ]; then
    exec unshare --user --map-root-user --mount --net --pid --fork --kill-child --mount-proc bash "$0" inside "$@"
fi

hosts=$(mktemp)
trap 'rm -f "$hosts"' EXIT
printf '127.0.0.1 localhost\n10.77.0.1 node0\n10.77.0.2 node1\n' >"$hosts"
mount --bind "$hosts" /etc/hosts

host() { # NUMBER COMMAND: waits for its end of the cable, then runs
    hostname "node$1"
    until ip link show "cable$1" >/dev/null 2>&1; do sleep 0.05; done
    ip link set lo up
    ip address add "10.77.0.$(($1 + 1))/24" dev "cable$1"
    ip link set "cable$1" up
    exec bash -c "$2"
}
export -f host

unshare --net --uts bash -c 'host 0 "$1"' _ "$2" &
first=$!
unshare --net --uts bash -c 'host 1 "$1"' _ "$3" &
second=$!
here=$(readlink /proc/self/ns/net)
for pid in $first $second; do # until each is in a network of its own
    while [ "$(readlink "/proc/$pid/ns/net")" = "$here" ]; do sleep 0.05; done
done
exec 7<"/proc/$first/ns/net" 8<"/proc/$second/ns/net" # a host stays up when its command has ended
ip link add cable0 netns $first type veth peer name cable1 netns $second

code=0
wait $first || code=$?
wait $second || code=$?
exit $code
