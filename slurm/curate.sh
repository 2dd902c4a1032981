#!/usr/bin/env bash
# Data for SFT and RL on one node's CPUs: `nemo-mtdrive curate` (docs/cluster.md).
#
#   sbatch slurm/curate.sh single-turn|multi-turn|understanding|rl-set ...
#   bash slurm/curate.sh ...             submits itself with the site's options (slurm/site.env)
#   DRYRUN=1 bash slurm/curate.sh ...    prints what would be submitted, and every step of it
#
# How it stands is said in RUN_DIR/reason.json (RUN_DIR: runs/slurm/curate-JOBID).
#
#SBATCH --job-name=mtdrive-curate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=0
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out

home=$(dirname "$0")/.. # Slurm runs a copy, far from its place
[[ -f $home/slurm/job.sh ]] || home=${MTDRIVE_HOME:-${SLURM_SUBMIT_DIR:-.}}
[[ -f $home/slurm/job.sh ]] || { echo "$home is no checkout: submit from its root, or set MTDRIVE_HOME to it" >&2; exit 2; }
# shellcheck source=slurm/job.sh
source "$home/slurm/job.sh"
command_line() { COMMAND=("$PYTHON" -m nemo_mtdrive.cli curate "$@"); }
command_job curate "$@"
