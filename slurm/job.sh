#!/usr/bin/env bash
# What all launchers share; they source it. Settings: slurm/site.env.example. docs/cluster.md tells the whole story.
#
#   run by bash on a login node   submits itself with the site's options       (submit)
#   run by Slurm                  preflight, steps, tries, the end of the job  (train, command_job)
#
# What counts is what the steps leave in RUN, never srun's exit code: it is 0 also for tasks that failed or were lost.
# RUN/reason.json always says how the job stands and why; RUN/complete.json is there when it has done all it should.
# The jobs are here, their parts in slurm/job/.
# shellcheck shell=bash
set -uo pipefail # not -e: what fails is looked at where it does, and a launcher that breaks off says so (on_exit)

MTDRIVE_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
POLL_S=0.5
LONGEST_S=$((7 * 86400)) # of stages whose time nobody knows
DRYRUN=${DRYRUN:-} RUN="" TRY=0 STOPPING="" DEADLINE=0 WHY="" OVER=""
STEPS=() # process ids of the sruns in the background

# shellcheck source=slurm/job/settings.sh
source "$MTDRIVE_HOME/slurm/job/settings.sh"
# shellcheck source=slurm/job/submission.sh
source "$MTDRIVE_HOME/slurm/job/submission.sh"
# shellcheck source=slurm/job/standing.sh
source "$MTDRIVE_HOME/slurm/job/standing.sh"
# shellcheck source=slurm/job/ends.sh
source "$MTDRIVE_HOME/slurm/job/ends.sh"
# shellcheck source=slurm/job/steps.sh
source "$MTDRIVE_HOME/slurm/job/steps.sh"
# shellcheck source=slurm/job/nodes.sh
source "$MTDRIVE_HOME/slurm/job/nodes.sh"

say() { echo "$(date -u +%FT%TZ) $*" >&2; }

refuse() { # WORDS: a request that cannot be met
  echo "${0##*/}: $*" >&2
  [[ -z $RUN ]] || reason failed "$*"
  exit 2
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
