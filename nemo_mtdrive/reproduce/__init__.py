"""The paper's claims in small, by this project's own commands: `nemo-mtdrive reproduce`."""
