#!/usr/bin/env bash
# A shell (or a command) beside a running job, on one of its nodes, with its GPUs; the job goes on.
#
#   slurm/attach.sh JOBID [NODE] [COMMAND...]    default: the job's first node, and a login shell
#
# It is on the node itself; inside a container by pyxis: slurm/attach.sh JOBID NODE enroot exec PID bash.
set -uo pipefail
case ${1:-} in
  "" | -h | --help)
    grep -E '^#( |$)' "$0" | cut -c 3-
    exit 2 ;;
esac
job=$1
nodes=$(squeue --noheader --jobs="$job" --states=RUNNING --format=%N 2> /dev/null)
[[ -n $nodes ]] || { echo "job $job does not run; \`squeue --me\` shows what does" >&2; exit 2; }
mapfile -t names < <(scontrol show hostnames "$nodes")
node=${2:-${names[0]}}
[[ " ${names[*]} " == *" $node "* ]] || { echo "$node is none of the nodes of job $job: ${names[*]}" >&2; exit 2; }
shift $(($# > 1 ? 2 : 1))
terminal=()
[[ ! -t 0 ]] || terminal=(--pty)
exec srun --jobid="$job" --overlap --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$node" --cpu-bind=none --mem=0 \
  --job-name=attach "${terminal[@]}" "${@:-bash}"
