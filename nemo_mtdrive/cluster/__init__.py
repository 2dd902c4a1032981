"""Jobs that span nodes: who runs where, checks before the start, and the life of each task under Slurm's srun."""
