"""The scene generator: small worlds with reacting traffic and an expert driver, a scene a seed."""

from nemo_mtdrive.driving.generator.mixture import (
    COMMAND_SHARES,
    MIXTURE,
    ROADS,
    SITUATIONS,
    SPLITS,
    split_seed,
)
from nemo_mtdrive.driving.generator.production import generate

__all__ = ["COMMAND_SHARES", "MIXTURE", "ROADS", "SITUATIONS", "SPLITS", "generate", "split_seed"]
