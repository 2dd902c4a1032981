#!/usr/bin/env bash
# Process 1 of a virtual node: its own host name, processes, network and shared memory. It reaps what jobs leave behind.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
hostname "node$1"
mount -t tmpfs -o size=4g private /dev/shm
slurmd -D -N "node$1" &
wait $!
