# What a site and a user may set: slurm/site.env under the environment, over defaults; the container. Part of slurm/job.sh.
# shellcheck shell=bash

SITE_KEYS=(ACCOUNT PARTITION QOS RESERVATION CONSTRAINT TIME NODES GPUS_PER_NODE RANKS_PER_NODE SBATCH_EXTRA CONTAINER IMAGE
  ROLLOUT_IMAGE MOUNTS PYTHON ROLLOUT_PYTHON SETUP CONFIG_NAME RUN_DIR LAYOUT ROLLOUT_NODES PORT_BASE NETWORK_INTERFACE
  MAX_TRIES MIN_FREE_GB PREFLIGHT PREFLIGHT_TIMEOUT_S PROBE_TIMEOUT_S REQUEUE NUM_RUNS)

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
