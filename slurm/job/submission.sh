# On a login node: sbatch with the site's options, or, for DRYRUN, what would be submitted. Part of slurm/job.sh.
# shellcheck shell=bash

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

dry_plan() { # the layout, made here where this machine has the environment
  [[ -x $PYTHON ]] && "$PYTHON" -m nemo_mtdrive.cli cluster plan "${config[@]}" > /dev/null 2>&1 && return
  echo "# (the numbers of tasks come from the config, which cannot be read here: 1 of each is shown)"
  local role
  for role in environment-server rollout-worker training-rank; do printf '%s\t1\t1\t1\tblock\t%s\n' "$role" "${NODE_NAMES[0]}"; done > "$RUN/slurm/layout.tsv"
}

dry_end() {
  OVER=1
  rm -rf "$RUN"
  exit 0
}
