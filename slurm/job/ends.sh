# How a job ends before its work does: the time limit, preemption, scancel, a lost node, a bad one. Part of slurm/job.sh.
# shellcheck shell=bash

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
