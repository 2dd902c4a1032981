#!/usr/bin/env bash
# What all launchers share; they source it. Settings: slurm/site.env.example. docs/cluster.md tells the whole story.
#
#   run by bash on a login node   submits itself with the site's options       (submit)
#   run by Slurm                  preflight, steps, tries, the end of the job  (train, command)
#
# What counts is what the steps leave in RUN, never srun's exit code: it is 0 also for tasks that failed or were lost.
# RUN/reason.json always says how the job stands and why; RUN/complete.json is there when it has done all it should.
# shellcheck shell=bash
set -uo pipefail # not -e: what fails is looked at where it does, and a launcher that breaks off says so (on_exit)

SITE_KEYS=(ACCOUNT PARTITION QOS RESERVATION CONSTRAINT TIME NODES GPUS_PER_NODE RANKS_PER_NODE SBATCH_EXTRA CONTAINER IMAGE
  ROLLOUT_IMAGE MOUNTS PYTHON ROLLOUT_PYTHON SETUP CONFIG_NAME RUN_DIR LAYOUT ROLLOUT_NODES PORT_BASE NETWORK_INTERFACE
  MAX_TRIES MIN_FREE_GB PREFLIGHT PREFLIGHT_TIMEOUT_S PROBE_TIMEOUT_S REQUEUE NUM_RUNS)
MTDRIVE_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
POLL_S=0.5
LONGEST_S=$((7 * 86400)) # of stages whose time nobody knows
DRYRUN=${DRYRUN:-} RUN="" TRY=0 STOPPING="" DEADLINE=0 WHY="" OVER=""
STEPS=() # process ids of the sruns in the background

say() { echo "$(date -u +%FT%TZ) $*" >&2; }

refuse() { # WORDS: a request that cannot be met
  echo "${0##*/}: $*" >&2
  [[ -z $RUN ]] || reason failed "$*"
  exit 2
}

# --- settings -------------------------------------------------------------------------------------------------------

load_settings() { # site.env under the environment, over defaults
  local site=${SITE_ENV:-$MTDRIVE_HOME/slurm/site.env} key problem
  local -A given=()
  if [[ -e $site ]]; then
    problem=$(bash -n "$site" 2>&1) || refuse "${problem//$'\n'/ }"
    while read -r key; do
      [[ " ${SITE_KEYS[*]} " == *" $key "* ]] ||
        refuse "$site: $key is no setting; known: ${SITE_KEYS[*]} (for the job's processes: export $key=...)"
    done < <(sed -nE 's/^[[:space:]]*([A-Za-z_][A-Za-z_0-9]*)=.*/\1/p' "$site")
    for key in "${SITE_KEYS[@]}"; do [[ -z ${!key+set} ]] || given[$key]=${!key}; done
    # shellcheck disable=SC1090
    source "$site" || refuse "$site: its last command failed"
    for key in "${!given[@]}"; do printf -v "$key" %s "${given[$key]}"; done
  elif [[ -n ${SITE_ENV:-} ]]; then
    refuse "SITE_ENV=$SITE_ENV: no such file"
  fi
  : "${CONTAINER:=auto}" "${LAYOUT:=colocated}" "${ROLLOUT_NODES:=0}" "${MAX_TRIES:=4}" "${MIN_FREE_GB:=20}" "${PREFLIGHT:=on}"
  : "${PREFLIGHT_TIMEOUT_S:=300}" "${PROBE_TIMEOUT_S:=60}" "${REQUEUE:=1}" "${NUM_RUNS:=1}" "${IMAGE:=}" "${ROLLOUT_IMAGE:=}"
  : "${MOUNTS:=}" "${SETUP:=}" "${NETWORK_INTERFACE:=}" "${SBATCH_EXTRA:=}"
  for key in NODES GPUS_PER_NODE RANKS_PER_NODE ROLLOUT_NODES PORT_BASE MAX_TRIES PREFLIGHT_TIMEOUT_S PROBE_TIMEOUT_S NUM_RUNS; do
    [[ -z ${!key:-} || ${!key} =~ ^[0-9]+$ ]] || refuse "$key=${!key}: set it to a whole number"
  done
  [[ $MIN_FREE_GB =~ ^[0-9]+(\.[0-9]+)?$ ]] || refuse "MIN_FREE_GB=$MIN_FREE_GB: set it to a number"
  ((MAX_TRIES > 0 && NUM_RUNS > 0)) || refuse "MAX_TRIES=$MAX_TRIES, NUM_RUNS=$NUM_RUNS: set both to 1 or more"
  one_of CONTAINER auto pyxis apptainer none
  one_of LAYOUT colocated disaggregated
  one_of PREFLIGHT on off only
  one_of REQUEUE 0 1
  [[ -z $SETUP || -r $SETUP ]] || refuse "SETUP=$SETUP: no such file"
}

one_of() { # NAME WORD...
  local name=$1
  shift
  [[ " $* " == *" ${!name} "* ]] || refuse "$name=${!name}: set it to one of $*"
}

find_container() { # how steps get their environment: RUNTIME
  RUNTIME=$CONTAINER
  local program=""
  if [[ $CONTAINER == auto ]]; then
    if [[ -z $IMAGE$ROLLOUT_IMAGE ]]; then RUNTIME=none
    elif has_pyxis; then RUNTIME=pyxis
    elif command -v apptainer > /dev/null; then RUNTIME=apptainer
    else refuse "no container runtime for IMAGE=$IMAGE: srun has no --container-image (pyxis), and there is no apptainer"
    fi
  fi
  [[ $RUNTIME != pyxis ]] || has_pyxis || refuse "no container runtime: CONTAINER=pyxis, but srun has no --container-image"
  [[ $RUNTIME != apptainer ]] || program=$(command -v apptainer) || refuse "no container runtime: CONTAINER=apptainer, but there is none on $(hostname)"
  [[ $RUNTIME == none || -n $IMAGE ]] || refuse "CONTAINER=$CONTAINER: set IMAGE too"
  [[ $RUNTIME == none || $IMAGE != /* || -e $IMAGE ]] || refuse "IMAGE=$IMAGE: no such file on $(hostname)"
  if [[ -z ${PYTHON:-} ]]; then
    if [[ $RUNTIME == none ]]; then PYTHON=$MTDRIVE_HOME/.venv/bin/python; else PYTHON=python; fi
  fi
  [[ $RUNTIME != none || $PYTHON != */* || -x $PYTHON ]] || refuse "PYTHON=$PYTHON: no such program on $(hostname); run \`make install\`, or set IMAGE"
  unset MTDRIVE_ROLLOUT_PYTHON
  [[ $RUNTIME != none || -n ${ROLLOUT_PYTHON:-} ]] || export MTDRIVE_ROLLOUT_PYTHON=config # as on one machine: rollout.python
  : "${ROLLOUT_PYTHON:=$PYTHON}" "${ROLLOUT_IMAGE:=$IMAGE}" "$program"
}

has_pyxis() { srun --help 2> /dev/null | grep -q -- --container-image; }

# --- on a login node ------------------------------------------------------------------------------------------------

submit() { # SCRIPT ARGUMENT...
  local script=$1 key number options=(--parsable --chdir="$MTDRIVE_HOME")
  shift
  local -A named=([ACCOUNT]=account [PARTITION]=partition [QOS]=qos [RESERVATION]=reservation [CONSTRAINT]=constraint
    [TIME]=time [NODES]=nodes [GPUS_PER_NODE]=gpus-per-node [RANKS_PER_NODE]=ntasks-per-node)
  for key in ACCOUNT PARTITION QOS RESERVATION CONSTRAINT TIME NODES GPUS_PER_NODE RANKS_PER_NODE; do
    [[ -z ${!key:-} ]] || options+=("--${named[$key]}=${!key}")
  done
  if [[ -n ${GPUS_PER_NODE:-} && -z ${RANKS_PER_NODE:-} ]]; then options+=("--ntasks-per-node=$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE : 1))"); fi
  ((NUM_RUNS == 1)) || options+=(--dependency=singleton)
  local extra=()
  read -ra extra <<< "$SBATCH_EXTRA"
  options+=("${extra[@]}")
  for ((number = 1; number <= NUM_RUNS; number++)); do
    if [[ -n $DRYRUN ]]; then
      printf '%q ' "MTDRIVE_HOME=$MTDRIVE_HOME" "MTDRIVE_CHAIN=$number/$NUM_RUNS" sbatch "${options[@]}" "$script" "$@"
      echo
    else
      MTDRIVE_HOME=$MTDRIVE_HOME MTDRIVE_CHAIN=$number/$NUM_RUNS sbatch "${options[@]}" "$script" "$@" || exit 1
    fi
  done
}

in_job() { [[ -n ${SLURM_JOB_ID:-} && ! -f $(dirname "$0")/job.sh ]]; }

pretend_job() { # SCRIPT: what Slurm would have set, for DRYRUN
  local nodes=${NODES:-$(sed -nE 's/^#SBATCH --nodes=([0-9]+).*/\1/p' "$1")} node
  local ranks=${RANKS_PER_NODE:-${GPUS_PER_NODE:-$(sed -nE 's/^#SBATCH --ntasks-per-node=([0-9]+).*/\1/p' "$1")}}
  SLURM_JOB_ID=0 SLURM_JOB_NUM_NODES=${nodes:-1} SLURM_NTASKS_PER_NODE=$((ranks > 0 ? ranks : 1)) SLURM_CPUS_ON_NODE=128
  SLURM_GPUS_PER_NODE=${GPUS_PER_NODE:-$(sed -nE 's/^#SBATCH --gpus-per-node=([0-9]+).*/\1/p' "$1")}
  NODE_NAMES=()
  for ((node = 1; node <= SLURM_JOB_NUM_NODES; node++)); do NODE_NAMES+=("node$node"); done
}

# --- how the job stands ---------------------------------------------------------------------------------------------

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

# --- signals --------------------------------------------------------------------------------------------------------

on_usr1() { # the time limit is near, or a job of higher priority wants the nodes
  [[ -z $STOPPING ]] || return 0
  STOPPING=1
  touch "$RUN/stop" || true
  local end left=120
  end=$(scontrol show job "$SLURM_JOB_ID" -o | grep -oE ' EndTime=[^ ]+' | cut -d = -f 2)
  [[ -z $end || $end == Unknown ]] || left=$(($(date -d "$end" +%s) - $(date +%s)))
  DEADLINE=$((SECONDS + left - (left < 135 ? left / 3 : 45)))
  say "USR1: the run ends after its step with a checkpoint; $left s are left"
}

on_term() { # scancel, the time limit, preemption, a lost node: Slurm ends the steps itself
  trap '' TERM USR1
  local said="" lost words="preempted, or requeued by an administrator" looks
  for ((looks = 0; looks < 50; looks++)); do # the signal may come before the state is written down
    said=$(scontrol show job "$SLURM_JOB_ID" -o 2> /dev/null)
    [[ $said == *" JobState=RUNNING "* || -z $said ]] || break
    sleep 0.1
  done # from now on the state is COMPLETING, whatever is to follow; the number of restarts has gone up, or has not
  if (($(grep -oE ' Restarts=[0-9]+' <<< "$said" | cut -d = -f 2) > ${SLURM_RESTART_COUNT:-0})); then
    lost=$(sinfo -h -N -n "$(IFS=,; echo "${NODE_NAMES[*]}")" -t down,fail,no_respond -o %N 2> /dev/null | sort -u | paste -sd,)
    [[ -z $lost ]] || words="node lost: $lost"
    reason requeued "$words; Slurm starts the job again, from the last whole checkpoint" "$lost"
  elif [[ $said == *" Reason=TimeLimit "* || $said == *" JobState=TIMEOUT "* ]]; then
    reason timeout "the time limit came before a checkpoint; submit again: it resumes from the last whole one"
  else
    reason cancelled "scancel"
  fi
  exit 143
}

requeue() { # WORDS [NODE,NODE]: start this job again, without those nodes
  local nodes=${2:-} old
  [[ $REQUEUE == 1 ]] || finish_job 1 failed "$1; REQUEUE=0: submit again, it resumes from the last whole checkpoint" "$nodes"
  end_steps
  reason requeued "$1" "$nodes"
  trap '' TERM USR1
  if ! scontrol requeue "$SLURM_JOB_ID"; then
    finish_job 1 failed "$1; Slurm would not requeue the job: submit again, it resumes from the last whole checkpoint" "$nodes"
  fi
  if [[ -n $nodes ]]; then
    old=$(scontrol show job "$SLURM_JOB_ID" -o | grep -oE ' ExcNodeList=[^ ]+' | cut -d = -f 2)
    [[ -z $old || $old == "(null)" ]] || nodes=$old,$nodes
    scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$nodes" || say "$nodes could not be excluded"
  fi
  exit 0
}

hand_over() { # the run was asked to end and has: this job goes on later, or the next one of the chain does
  local chain=${MTDRIVE_CHAIN:-1/1} what="time limit"
  grep -qE ' PreemptTime=[0-9]' <<< "$(scontrol show job "$SLURM_JOB_ID" -o)" && what="preempted"
  if [[ $what == "time limit" && ${chain%/*} -lt ${chain#*/} ]]; then
    finish_job 0 stopped "$what: $1; job ${chain%/*} of ${chain#*/}, the next one goes on"
  fi
  [[ $REQUEUE == 1 ]] || finish_job 0 stopped "$what: $1; REQUEUE=0: submit again to go on"
  requeue "$what: $1"
}

# --- steps ----------------------------------------------------------------------------------------------------------

build_step() { # train|rollout SRUN-OPTION... -- COMMAND...: STEP
  local image=$IMAGE options=() inner=()
  [[ $1 != rollout ]] || image=$ROLLOUT_IMAGE
  shift
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  [[ -z $SETUP ]] || inner=(bash -c "source ${SETUP@Q} && exec \"\$@\"" setup)
  STEP=(srun --overlap --export=ALL --input=none --cpu-bind=none --kill-on-bad-exit=1 --chdir="$MTDRIVE_HOME" "${options[@]}")
  case $RUNTIME in
    pyxis) STEP+=(--container-image="$image" --container-mounts="$MTDRIVE_HOME:$MTDRIVE_HOME,$RUN:$RUN${MOUNTS:+,$MOUNTS}"
      --container-workdir="$MTDRIVE_HOME" --no-container-mount-home) ;;
    apptainer) inner=(apptainer exec --nv --bind "$MTDRIVE_HOME,$RUN${MOUNTS:+,$MOUNTS}" --pwd "$MTDRIVE_HOME" "$image" "${inner[@]}") ;;
  esac
  STEP+=("${inner[@]}" "$@")
}

start_step() { # NAME, then as build_step: in the background; its srun is the last of STEPS
  local name=$1
  shift
  build_step "$1" --job-name="mtd-$name" "${@:2}"
  if [[ -n $DRYRUN ]]; then
    { echo "# $name" && printf '%q ' "${STEP[@]//$RUN/$DRY_RUN}" && echo; } >&3
    return
  fi
  mark "$name"
  "${STEP[@]}" 2> >(tee "$RUN/slurm/try-$TRY/$name.err" >&2) &
  STEPS+=($!)
}

run_step() { # NAME SECONDS, then as build_step: to its end; returns srun's code, or 124 when the time is over
  local name=$1 end=$((SECONDS + $2)) pid code=0
  shift 2
  start_step "$name" "$@"
  [[ -z $DRYRUN ]] || return 0
  pid=${STEPS[-1]}
  while kill -0 "$pid" 2> /dev/null; do
    pause
    if ((SECONDS > end)); then
      end_steps
      return 124
    fi
  done
  wait "$pid" || code=$?
  STEPS=()
  return "$code"
}

pause() { # a moment; USR1's deadline is looked at here
  sleep "$POLL_S" &
  wait $! || true
  if [[ -n $STOPPING ]] && ((SECONDS > DEADLINE)); then
    end_steps
    hand_over "no checkpoint was whole in time; it resumes from the last whole one"
  fi
}

end_steps() { # TERM to all tasks, KILL to what is left of them
  local pid step end=$((SECONDS + 20))
  if ((${#STEPS[@]} > 0)) && running_steps; then # srun's own answer to TERM is to kill its tasks
    for step in $(squeue --steps --noheader --jobs="$SLURM_JOB_ID" --format='%i %j' | awk '$2 ~ /^mtd-/ {print $1}'); do
      scancel --signal=TERM "$step" || true
    done
  fi
  while running_steps && ((SECONDS < end)); do sleep "$POLL_S"; done
  for pid in "${STEPS[@]}"; do
    kill -TERM "$pid" 2> /dev/null || true
    wait "$pid" 2> /dev/null || true
  done
  STEPS=()
}

running_steps() { # whether one is left
  local pid
  for pid in "${STEPS[@]}"; do ! kill -0 "$pid" 2> /dev/null || return 0; done
  return 1
}

last_words() { # NAME: the last line that a step said of itself, for reason.json
  sleep 0.2 # its tee may be on the way
  grep -vE '^(srun|slurmstepd[^:]*):|^ *$' "$RUN/slurm/try-$TRY/$1.err" 2> /dev/null | tail -n 1 | sed 's/^nemo-mtdrive: //' | grep . ||
    echo "the job's output says why"
}

python_step() { # NAME SECONDS ARGUMENT...: one task of nemo-mtdrive on the first node
  local name=$1 seconds=$2
  shift 2
  run_step "$name" "$seconds" train --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="${NODE_NAMES[0]}" \
    --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" -- "$PYTHON" -m nemo_mtdrive.cli "$@"
}

# --- preflight ------------------------------------------------------------------------------------------------------

preflight() { # OPTION...: checks on every node; bad ones are named, excluded, and the job is requeued
  [[ $PREFLIGHT != off ]] || return 0
  local count=${#NODE_NAMES[@]} canary=$RUN/slurm/canary.$TRY word node
  ADDRESSES=$RUN/slurm/try-$TRY/preflight.txt
  word=$(printf '%s-%s-%s' "$SLURM_JOB_ID" "$TRY" "$RANDOM")
  [[ -n $DRYRUN ]] || echo "$word" > "$canary" || finish_job 1 failed "the disk is full: $canary cannot be written; make room and submit again"
  run_step preflight "$PREFLIGHT_TIMEOUT_S" train --nodes="$count" --ntasks="$count" --ntasks-per-node=1 \
    --cpus-per-task=1 --kill-on-bad-exit=0 -- "$PYTHON" -m nemo_mtdrive.cli preflight --run-dir "$RUN" \
    --canary "$canary" "$word" --least-free-gb "$MIN_FREE_GB" ${NETWORK_INTERFACE:+--interface "$NETWORK_INTERFACE"} "$@" > "$SAID"
  [[ -z $DRYRUN ]] || return 0
  for node in "${NODE_NAMES[@]}"; do
    if grep -q "^$node"$'\tok\t' "$SAID" && [[ $(cat "$canary.$node" 2> /dev/null) != "$word" ]]; then
      printf '%s\tbad\twhat it wrote to the shared %s is not seen here\n' "$node" "${canary%/*}" >> "$SAID"
    fi
  done
  rm -f "$canary" "$canary".*
  cp "$SAID" "$ADDRESSES"
  judge_nodes "preflight" "${NODE_NAMES[@]}"
}

smoke() { # all ranks' tasks in one all-reduce
  [[ $PREFLIGHT != off ]] || return 0
  local role tasks nodes per distribution list used
  read_layout training-rank
  run_step all-reduce "$PREFLIGHT_TIMEOUT_S" train --nodes="$nodes" --ntasks="$tasks" --ntasks-per-node="$per" --distribution="$distribution" \
    --nodelist="$list" --cpus-per-task="$(cpus_each "$per")" -- "$PYTHON" -m nemo_mtdrive.cli preflight --run-dir "$RUN" \
    --all-reduce "$ADDRESSES" --timeout-s "$((PREFLIGHT_TIMEOUT_S * 4 / 5))" > "$SAID"
  [[ -z $DRYRUN ]] || return 0
  cat "$SAID" >> "$RUN/slurm/try-$TRY/all-reduce.txt"
  IFS=, read -ra used <<< "$list"
  judge_nodes "all-reduce" "${used[@]}"
  grep -q $'\tok\t' "$SAID" || finish_job 1 failed "all-reduce: all nodes began it, and it did not end well: $(last_words all-reduce)"
  say "preflight: $(grep $'\tok\t' "$SAID" | cut -f 3)"
}

judge_nodes() { # WHAT NODE...: from the lines in SAID
  local what=$1 node bad=() words=() problem
  shift
  problem=$(awk -F '\t' '$2 == "run" {print $1 ": " $3; exit}' "$SAID")
  [[ -z $problem ]] || finish_job 1 failed "$what: $problem"
  grep -qE $'^[^\t]+\t(ok|bad|here)\t' "$SAID" || finish_job 1 failed "$what: no node answered: $(grep -v 'cpu binding' "$RUN/slurm/try-$TRY/$what.err" | tail -n 1)"
  for node in "$@"; do
    problem=$(awk -F '\t' -v node="$node" '$1 == node && $2 == "bad" {print $3; exit}' "$SAID")
    grep -qE "^$node"$'\t(ok|bad|here)\t' "$SAID" || problem="it did not answer within $PREFLIGHT_TIMEOUT_S s"
    [[ -z $problem ]] || { bad+=("$node"); words+=("$node: $problem"); }
  done
  ((${#bad[@]} == 0)) || requeue "$what: bad node $(IFS=';'; echo "${words[*]}")" "$(IFS=,; echo "${bad[*]}")"
}

read_layout() { # ROLE: its line into the caller's role tasks nodes per distribution list
  if ! IFS=$'\t' read -r role tasks nodes per distribution list < <(grep "^$1"$'\t' "$RUN/slurm/layout.tsv"); then
    finish_job 1 failed "no layout for $1 in $RUN/slurm/layout.tsv"
  fi
}

cpus_each() { echo $((${SLURM_CPUS_ON_NODE:-1} / $1 > 0 ? ${SLURM_CPUS_ON_NODE:-1} / $1 : 1)); }

probe() { # which nodes still answer: one srun a node, so that one that is lost takes no other along
  local node pids=() lost=() index=0
  for node in "${NODE_NAMES[@]}"; do
    timeout -k 5 "$PROBE_TIMEOUT_S" srun --overlap --input=none --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$node" true &
    pids+=($!)
  done
  for node in "${NODE_NAMES[@]}"; do
    while kill -0 "${pids[$index]}" 2> /dev/null; do pause; done
    wait "${pids[$index]}" || lost+=("$node")
    index=$((index + 1))
  done
  ((${#lost[@]} == 0)) || requeue "node lost: ${lost[*]} does not answer; $WHY" "$(IFS=,; echo "${lost[*]}")"
}

# --- jobs -----------------------------------------------------------------------------------------------------------

train() { # DEFAULT-CONFIG DEFAULT-RUN KEY=VALUE...: the whole main job over all nodes; ONLY=--only-sft: its first half
  local default_config=$1 default_run=$2 config code=0
  shift 2
  enter "$default_run" "$@"
  : "${CONFIG_NAME:=$default_config}"
  begin_job ${ONLY:+"$ONLY"} "$@"
  config=(--config-name "$CONFIG_NAME" ${ONLY:+"$ONLY"} "$@" "run_dir=$RUN")
  [[ -z $ROLLOUT_IMAGE || $ROLLOUT_IMAGE == "$IMAGE" ]] || config+=("rollout.python=$(command -v bash)") # its image has its own
  begin_try
  stage plan "$PREFLIGHT_TIMEOUT_S" "${config[@]}"
  if [[ -n $DRYRUN ]]; then dry_plan; fi
  preflight
  smoke
  [[ $PREFLIGHT != only ]] || finish_job 0 completed "preflight passed"
  stage prepare "$LONGEST_S" "${config[@]}"
  [[ -z $STOPPING ]] || hand_over "before the first step"
  while ! one_try; do
    probe
    begin_try
  done
  stage finish "$LONGEST_S" --run-dir "$RUN"
  if [[ -n $DRYRUN ]]; then dry_end; fi
  [[ -s $RUN/complete.json ]] || finish_job 1 failed "finish: the run did all its steps, but no $RUN/complete.json is there"
  finish_job 0 completed "all steps are done"
}

stage() { # NAME SECONDS ARGUMENT...: a step of one task, which says itself that it has done its work
  local name=$1 seconds=$2 code=0
  shift 2
  python_step "$name" "$seconds" cluster "$name" "$@" || code=$?
  [[ -z $DRYRUN ]] || return 0
  [[ $code != 2 ]] || finish_job 2 failed "$name: $(last_words "$name")"
  [[ -e $RUN/slurm/try-$TRY/$name.done ]] ||
    finish_job 1 failed "$name: $(disk_words)it ended with code $code: $(last_words "$name")"
}

one_try() { # servers, workers and ranks, until the ranks have ended; false: try again (WHY)
  local word why node role since=0
  reason running "try $TRY${WHY:+ after: $WHY}"
  stage meet "$PREFLIGHT_TIMEOUT_S" --run-dir "$RUN" ${ADDRESSES:+--addresses "$ADDRESSES"}
  for role in environment-server rollout-worker training-rank; do start_role "$role"; done
  [[ -z $DRYRUN ]] || return 0
  while kill -0 "${STEPS[2]}" 2> /dev/null; do
    pause
    if [[ -n $(find "$RUN/slurm/try-$TRY" -name '*.ended' -print -quit) ]] || ! kill -0 "${STEPS[0]}" 2> /dev/null ||
      ! kill -0 "${STEPS[1]}" 2> /dev/null; then # a task has given up, or its step is gone: ranks end soon, or are stuck
      ((since > 0)) || since=$SECONDS
      ((SECONDS - since < 60)) || break
    fi
  done
  end_steps
  if grep -q '"finished": true' "$RUN/status.json" 2> /dev/null; then return 0; fi
  python_step judge "$PREFLIGHT_TIMEOUT_S" cluster judge --run-dir "$RUN" > "$SAID"
  IFS=$'\t' read -r word why node < "$SAID"
  case ${word:-} in
    finished) return 0 ;;
    stopped) if [[ -n $STOPPING ]]; then hand_over "${why#a stop was asked for: }"; else finish_job 0 stopped "$why; submit again to go on"; fi ;;
    failed) finish_job 1 failed "$why" "$node" ;;
    again) WHY=$why ;;
    *) WHY="the tasks ended, and nobody could say how" ;;
  esac
  [[ -z $STOPPING ]] || hand_over "$WHY"
  return 1
}

start_role() { # ROLE
  local role tasks nodes per distribution list image=train python=$PYTHON
  read_layout "$1"
  if [[ $1 == rollout-worker ]]; then image=rollout python=$ROLLOUT_PYTHON; fi
  start_step "$1" "$image" --nodes="$nodes" --ntasks="$tasks" --ntasks-per-node="$per" --distribution="$distribution" \
    --nodelist="$list" --cpus-per-task="$(cpus_each "$per")" -- "$python" -m nemo_mtdrive.cli cluster task "$1" --run-dir "$RUN"
}

dry_end() {
  OVER=1
  rm -rf "$RUN"
  exit 0
}

dry_plan() { # the layout, made here where this machine has the environment
  [[ -x $PYTHON ]] && "$PYTHON" -m nemo_mtdrive.cli cluster plan "${config[@]}" > /dev/null 2>&1 && return
  echo "# (the numbers of tasks come from the config, which cannot be read here: 1 of each is shown)"
  local role
  for role in environment-server rollout-worker training-rank; do printf '%s\t1\t1\t1\tblock\t%s\n' "$role" "${NODE_NAMES[0]}"; done > "$RUN/slurm/layout.tsv"
}

disk_words() { # says so when it is the disk
  local free
  free=$(df -Pk "$RUN" 2> /dev/null | awk 'NR == 2 {print $4}')
  ((${free:-0} > 16384)) || printf 'the disk is full: %s KB are free at %s; ' "${free:-0}" "$RUN"
}

enter() { # DEFAULT-RUN ARGUMENT...: submit, and end; or, in a job, get ready for it
  local default_run=$1
  shift
  if in_job; then
    open_run "$default_run"
    load_settings
    open_run "$default_run"
    return
  fi
  case ${1:-} in -h | --help)
    grep -E '^#( |$)' "$0" | cut -c 3-
    exit 0 ;;
  esac
  load_settings
  submit "$0" "$@"
  [[ -n $DRYRUN ]] || exit 0
  pretend_job "$0"
  exec 3>&1 # steps are shown there, also those whose output goes to a file
  DRY_RUN=${RUN_DIR:-$default_run} RUN=$(mktemp -d)
  mkdir "$RUN/slurm"
}

command_job() { # NAME ARGUMENT...: one task on one node, with all its GPUs; `command_line` makes COMMAND of the arguments
  local name=$1 code=0
  shift
  NODES=1 RANKS_PER_NODE=1
  enter "runs/slurm/$name-${SLURM_JOB_ID:-JOBID}" "$@"
  begin_job "$@"
  command_line "$@"
  begin_try
  preflight --gpus "$GPUS"
  while :; do
    # shellcheck disable=SC2016
    start_step "$name" train --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" -- \
      bash -c 'code=0; "${@:2}" || code=$?; echo "$code" > "$1"; exit "$code"' step "$RUN/slurm/try-$TRY/code" "${COMMAND[@]}"
    if [[ -n $DRYRUN ]]; then dry_end; fi
    while kill -0 "${STEPS[0]}" 2> /dev/null; do
      pause
      [[ -z $STOPPING ]] || hand_over "it goes on where it can, else from the beginning"
    done
    end_steps
    code=$(cat "$RUN/slurm/try-$TRY/code" 2> /dev/null || true)
    [[ $code != 0 ]] || break
    [[ $code != 2 ]] || finish_job 2 failed "$name: $(last_words "$name")"
    [[ -z $code ]] || finish_job 1 failed "$name: $(disk_words)it ended with code $code: $(last_words "$name")"
    WHY="$name ended without a word"
    probe
    begin_try
    reason running "try $TRY: $WHY"
  done
  printf '{"request": "%s", "job": "%s", "attempt": %s}\n' "$MTDRIVE_REQUEST" "$SLURM_JOB_ID" "$TRY" > "$RUN/complete.json"
  finish_job 0 completed "$name is done"
}
