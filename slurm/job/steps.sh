# Steps: one srun each, in a container or none, in the background or to the end. Part of slurm/job.sh.
# shellcheck shell=bash

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

python_step() { # NAME SECONDS ARGUMENT...: one task of nemo-mtdrive on the first node
  local name=$1 seconds=$2
  shift 2
  run_step "$name" "$seconds" train --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="${NODE_NAMES[0]}" \
    --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" -- "$PYTHON" -m nemo_mtdrive.cli "$@"
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

read_layout() { # ROLE: its line into the caller's role tasks nodes per distribution list
  if ! IFS=$'\t' read -r role tasks nodes per distribution list < <(grep "^$1"$'\t' "$RUN/slurm/layout.tsv"); then
    finish_job 1 failed "no layout for $1 in $RUN/slurm/layout.tsv"
  fi
}

cpus_each() { echo $((${SLURM_CPUS_ON_NODE:-1} / $1 > 0 ? ${SLURM_CPUS_ON_NODE:-1} / $1 : 1)); }
