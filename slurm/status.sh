#!/usr/bin/env bash
# How a job of the launchers stands.
#
#   slurm/status.sh [RUN|JOBID]    default: all jobs of this user that the launchers submitted
#
# Of a run: its reason file, Slurm's own words, the steps that run, the last metrics, the newest logs.
set -uo pipefail

of_job() { # JOBID: its run directory, out of its comment or environment
  scontrol show job "$1" -o 2> /dev/null | grep -oE ' Comment=[^ ]*RUN=[^ ]+' | grep -oE '/[^ ]+'
}

case ${1:-} in
  -h | --help)
    grep -E '^#( |$)' "$0" | cut -c 3-
    exit 0 ;;
  "")
    squeue --me --format='%.10i %.16j %.10T %.12M %.12l %.6D %R' | awk 'NR == 1 || $2 ~ /^mtdrive-/'
    exit 0 ;;
esac
run=$1
if [[ $1 =~ ^[0-9]+$ && ! -d $1 ]]; then
  run=$(of_job "$1") || { echo "job $1: unknown to Slurm, or no job of these launchers; name its run directory" >&2; exit 2; }
fi
[[ -e $run/reason.json ]] || { echo "$run/reason.json: no such file; name a run directory or a job id" >&2; exit 2; }

field() { grep -oE "^\{.*" "$run/reason.json" | sed -nE "1s/^[^[]*\"$1\": \"?(([^\"\\\\]|\\\\.)*)\"?,.*/\1/p"; }
job=$(field job)
echo "run      $run"
echo "state    $(field state), try $(field attempt), since $(field when)"
echo "reason   $(field reason)"
[[ ! -e $run/complete.json ]] || echo "marker   $run/complete.json"
if said=$(squeue --noheader --jobs="$job" --format='%T, %M of %l, nodes %N %r' 2> /dev/null) && [[ -n $said ]]; then
  echo "job      $job: $said"
  squeue --steps --noheader --jobs="$job" --format='%i %j %N' | awk '$2 ~ /^mtd-/ {print "step     " substr($2, 5) " on " $3 " (" $1 ")"}'
fi
newest=$(find "$run/checkpoints" -mindepth 2 -maxdepth 2 -name complete.json ! -path '*/.*' -printf '%T@ %h\n' 2> /dev/null | sort -n | tail -n 1)
[[ -z $newest ]] || echo "saved    ${newest#* }"
[[ ! -s $run/metrics.jsonl ]] || echo "metrics  $(tail -n 1 "$run/metrics.jsonl" | cut -c 1-300)"
for log in $(find "$run/logs" -name '*.log' -size +0 -printf '%T@ %p\n' 2> /dev/null | sort -rn | head -n 3 | cut -d ' ' -f 2-); do
  echo "log      $log: $(tail -n 1 "$log" | cut -c 1-200)"
done
