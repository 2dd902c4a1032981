#!/usr/bin/env bash
# A checkpoint between Hugging Face and NeMo on one node: converters/NAME.py (docs/cluster.md).
#
#   sbatch slurm/convert.sh hf_to_nemo|nemo_to_hf ...
#   bash slurm/convert.sh ...             submits itself with the site's options (slurm/site.env)
#   DRYRUN=1 bash slurm/convert.sh ...    prints what would be submitted, and every step of it
#
# How it stands is said in RUN_DIR/reason.json (RUN_DIR: runs/slurm/convert-JOBID).
#
#SBATCH --job-name=mtdrive-convert
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=0
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=02:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out

home=$(dirname "$0")/.. # Slurm runs a copy, far from its place
[[ -f $home/slurm/job.sh ]] || home=${MTDRIVE_HOME:-${SLURM_SUBMIT_DIR:-.}}
[[ -f $home/slurm/job.sh ]] || { echo "$home is no checkout: submit from its root, or set MTDRIVE_HOME to it" >&2; exit 2; }
# shellcheck source=slurm/job.sh
source "$home/slurm/job.sh"
command_line() { COMMAND=("$PYTHON" "$MTDRIVE_HOME/converters/${1:-hf_to_nemo}.py" "${@:2}"); }
command_job convert "$@"
