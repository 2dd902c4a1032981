#!/usr/bin/env bash
# mtGRPO of Qwen2.5-VL-7B on 4 nodes with 8 GPUs each (docs/cluster.md).
#
#   sbatch slurm/rl_32gpu.sh [KEY=VALUE...]      from the root of the checkout, with the options below
#   bash slurm/rl_32gpu.sh [KEY=VALUE...]        submits itself with the site's options (slurm/site.env)
#   DRYRUN=1 bash slurm/rl_32gpu.sh              prints what would be submitted, and every step of it
#   NUM_RUNS=3 bash slurm/rl_32gpu.sh            three jobs, one after the other
#
# KEY=VALUE are keys of the config. It submits to RUN_DIR (runs/rl_7b), resumes what it finds there, and says in
# RUN_DIR/reason.json how it stands.
#
#SBATCH --job-name=mtdrive-rl
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out

home=$(dirname "$0")/.. # Slurm runs a copy, far from its place
[[ -f $home/slurm/job.sh ]] || home=${MTDRIVE_HOME:-${SLURM_SUBMIT_DIR:-.}}
[[ -f $home/slurm/job.sh ]] || { echo "$home is no checkout: submit from its root, or set MTDRIVE_HOME to it" >&2; exit 2; }
# shellcheck source=slurm/job.sh
source "$home/slurm/job.sh"
train rl_qwen25vl_7b_32gpu runs/rl_7b "$@"
