#!/usr/bin/env bash
# Process 1 of a private Slurm: munged, slurmctld and four nodes in namespaces of their own (mounts, network, processes,
# host name, IPC). It stays inside them: when this process ends, the kernel ends all others and takes mounts, network,
# key and files with it. It ends when its standard input does, so when whoever started it is gone, however that went.
#
# Commands on standard input, each answered by one line: `start N`, `kill N` (power loss: the cable first).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
nodes=(1 2 3 4)
declare -A started

isolate() {
  hostname head
  mount -t tmpfs -o size=256m private /run   # the machine's own munge and Slurm are out of sight
  mount -t tmpfs -o size=64m private /dev/shm
  mkdir -p /run/slurm/{state,spool,log,gpus,nodes,disk} /run/munge /run/lock
  mount -t tmpfs -o size=2g private /run/slurm/disk   # shared by all nodes, to be filled
  mount --bind "$here/etc" /etc/slurm
  mount --bind "$here/etc/hosts" /etc/hosts
  for gpu in {0..7}; do ln -s /dev/null "/run/slurm/gpus/nvidia$gpu"; done
}

connect() {
  { echo "link set lo up"
    echo "link add bridge type bridge"
    echo "address add 10.77.0.254/24 dev bridge"
    echo "link set bridge up"; } | ip -batch -
  for node in "${nodes[@]}"; do
    ip netns add "node$node"
    ip link add "cable$node" type veth peer name eth0 netns "node$node"
    ip link set "cable$node" master bridge up
    { echo "link set lo up"
      echo "address add 10.77.0.$node/24 dev eth0"
      echo "link set eth0 up"; } | ip -netns "node$node" -batch -
  done
}

start_munged() {
  (umask 077; head -c 128 /dev/urandom > /run/munge/key)
  munged --foreground --force --key-file=/run/munge/key --pid-file=/run/munge/pid --seed-file=/run/munge/seed \
    --socket=/run/munge/munge.socket.2 --num-threads=4 < /dev/null &> /run/slurm/log/munged.log &
  wait_for 30 test -S /run/munge/munge.socket.2
}

start_node() { # its first process is node.sh; what stands in nodes/N is that process's id here
  local node=$1 outside
  ip link set "cable$node" up
  nsenter --net="/run/netns/node$node" unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc \
    "$here/node.sh" "$node" < /dev/null &>> "/run/slurm/log/node$node.out" &
  started[$node]=$!
  outside=$!
  wait_for 30 first_child "$outside" "/run/slurm/nodes/$node"
}

first_child() { # PROCESS FILE: write the id of its child, once it has one
  local child
  read -r child _ < "/proc/$1/task/$1/children" || true # there is no end of line
  [[ -n $child ]] && echo "$child" > "$2"
}

kill_node() {
  ip link set "cable$1" down
  kill -KILL "${started[$1]}"
  wait "${started[$1]}" || true
}

wait_for() { # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < end)) || { echo "waited in vain for: $*" >&2; tail -n 5 /run/slurm/log/* >&2; exit 1; }
    sleep 0.02
  done
}

all_idle() { [[ $(sinfo -h -N -p batch -t idle -o %N 2> /dev/null | wc -l) -eq ${#nodes[@]} ]]; }

isolate
connect
start_munged
slurmctld -D < /dev/null &> /run/slurm/log/slurmctld.out &
for node in "${nodes[@]}"; do start_node "$node"; done
wait_for 120 all_idle
echo "ready $$"
while read -r verb argument; do
  case $verb in
    start) start_node "$argument" ;;
    kill) kill_node "$argument" ;;
    *) echo "unknown: $verb"; continue ;;
  esac
  echo "done"
done
