# How the job stands: RUN/reason.json, its history, its tries, and RUN/complete.json. Part of slurm/job.sh.
# shellcheck shell=bash

quoted() { # a JSON string
  local text=${1//[[:cntrl:]]/ }
  text=${text//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

reason() { # STATE WORDS [NODE]: RUN/reason.json, whole; on a full disk in place of the old one, which is long enough
  local path=$RUN/reason.json history=$RUN/slurm/history.jsonl size before="" entry
  [[ $1 == running ]] || OVER=1
  entry="\"state\": $(quoted "$1"), \"reason\": $(quoted "${2:0:1000}"), \"node\": $(quoted "${3:-}"), \"attempt\": $TRY,"
  entry+=" \"when\": \"$(date -u +%FT%TZ)\", \"job\": \"${SLURM_JOB_ID:-}\""
  [[ ! -s $history ]] || before=$(tail -n 20 "$history" | paste -sd,)
  if { printf '{%s, "before": [%s]}\n%4096s\n' "$entry" "$before" "" > "$path.new"; } 2> /dev/null && mv "$path.new" "$path"; then
    if [[ $1 != running ]]; then echo "{$entry}" >> "$history"; fi
  elif [[ -s $path ]]; then
    rm -f "$path.new"
    size=$(stat -c %s "$path")
    printf "%-$((size - 1))s\n" "{$entry, \"before\": []}" 1<> "$path"
  fi 2> /dev/null
  [[ -n $DRYRUN ]] || say "$1: $2"
  [[ -n $DRYRUN ]] || scontrol update JobId="$SLURM_JOB_ID" Comment="RUN=$RUN $1: ${2:0:200}" > /dev/null 2>&1 || true
}

finish_job() { # CODE STATE WORDS [NODE]
  local code=$1
  shift
  end_steps
  reason "$@"
  exit "$code"
}

on_exit() { # this script broke off
  local code=$?
  [[ -n $DRYRUN ]] || rm -f "$SAID"
  [[ -n $OVER || -z $RUN ]] || reason failed "the launcher broke off with code $code; the job's output says where"
}

mark() { printf '%s\t%s\t%s\n' "$(date +%s.%N)" "$TRY" "$1" >> "$RUN/slurm/steps.tsv" || true; } # when a step began

newest_checkpoint() {
  find "$RUN/checkpoints" -mindepth 2 -maxdepth 2 -name complete.json ! -path '*/.*' -printf '%T@\n' 2> /dev/null | sort -n | tail -n 1
}

open_run() { # DEFAULT-RUN: its folders, so that reason.json can say how the job stands
  RUN=${RUN_DIR:-$1}
  [[ $RUN == /* ]] || RUN=$MTDRIVE_HOME/$RUN
  mkdir -p "$RUN/slurm" "$RUN/logs" ||
    { RUN=""; refuse "RUN_DIR=${RUN_DIR:-$1} cannot be made; set it to a folder on a file system that all nodes share"; }
}

begin_job() { # ARGUMENT...: traps, what an earlier start of this job left, what the steps are to know
  MTDRIVE_REQUEST=$(printf '%s\n' "${CONFIG_NAME:-}" "$@" | sha256sum | cut -c 1-16)
  MTDRIVE_STARTED=$(date +%s)
  export MTDRIVE_HOME MTDRIVE_REQUEST MTDRIVE_STARTED
  trap on_usr1 USR1
  trap on_term TERM
  trap on_exit EXIT
  [[ -z $DRYRUN ]] || SAID=/dev/null
  [[ -n $DRYRUN ]] || SAID=$(mktemp) || SAID=$RUN/slurm/said # what a step says on stdout; on the node's own disk: the shared one is under test
  TRY=$(last_try)
  if [[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]] && head -n 1 "$RUN/reason.json" | grep -qE '^\{"state": "running", .*"job": "'"$SLURM_JOB_ID"'"'; then
    reason interrupted "the node of the batch script was lost, or the script was killed; Slurm has started the job again"
    OVER=""
  fi
  rm -f "$RUN/stop"
  reason running "the job begins"
  if [[ -s $RUN/complete.json ]]; then
    if grep -q "\"request\": \"$MTDRIVE_REQUEST\"" "$RUN/complete.json"; then
      finish_job 0 completed "complete already: $RUN/complete.json; remove it to run again"
    fi
    rm -f "$RUN/complete.json"
  fi
  [[ -n ${NODE_NAMES:-} ]] || mapfile -t NODE_NAMES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  GPUS=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}} # as 8 or h100:8
  GPUS=${GPUS##*:}
  export MTDRIVE_NODES="${NODE_NAMES[*]}" MTDRIVE_GPUS=$GPUS MTDRIVE_RANKS_PER_NODE=${SLURM_NTASKS_PER_NODE:-1}
  export MTDRIVE_LAYOUT=$LAYOUT MTDRIVE_ROLLOUT_NODES=$ROLLOUT_NODES MTDRIVE_PORT_BASE=${PORT_BASE:-$((10000 + SLURM_JOB_ID * 200 % 20000))}
  find_container
}

last_try() { tail -n 1 "$RUN/slurm/tries.tsv" 2> /dev/null | cut -f 1 | grep . || echo 0; }

begin_try() { # counts; no more than MAX_TRIES without a new checkpoint
  local newest without
  newest=$(newest_checkpoint)
  without=$(awk -F '\t' -v job="$SLURM_JOB_ID" -v newest="${newest:-0}" '$2 == job && $4 == newest' "$RUN/slurm/tries.tsv" 2> /dev/null | wc -l)
  if ((without >= MAX_TRIES)); then
    local last
    last=$(tail -n 1 "$RUN/slurm/history.jsonl" 2> /dev/null | sed -nE 's/.*"reason": "(([^"\\]|\\.)*)".*/\1/p')
    finish_job 1 failed "$without tries without a new checkpoint (MAX_TRIES=$MAX_TRIES); the last: ${WHY:-$last}"
  fi
  TRY=$((TRY + 1))
  export MTDRIVE_TRY=$TRY
  { printf '%s\t%s\t%s\t%s\n' "$TRY" "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "${newest:-0}" >> "$RUN/slurm/tries.tsv" &&
    mkdir -p "$RUN/slurm/try-$TRY"; } || finish_job 1 failed "the disk is full: nothing can be written to $RUN; make room there and submit again"
}

disk_words() { # says so when it is the disk
  local free
  free=$(df -Pk "$RUN" 2> /dev/null | awk 'NR == 2 {print $4}')
  ((${free:-0} > 16384)) || printf 'the disk is full: %s KB are free at %s; ' "${free:-0}" "$RUN"
}

last_words() { # NAME: the last line that a step said of itself, for reason.json
  sleep 0.2 # its tee may be on the way
  grep -vE '^(srun|slurmstepd[^:]*):|^ *$' "$RUN/slurm/try-$TRY/$1.err" 2> /dev/null | tail -n 1 | sed 's/^nemo-mtdrive: //' | grep . ||
    echo "the job's output says why"
}
