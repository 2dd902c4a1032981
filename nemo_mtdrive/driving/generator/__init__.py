"""The scene generator: small worlds with reacting traffic and an expert driver, a scene a seed."""

from nemo_mtdrive.driving.generator.simulation import MIXTURE, ROADS, SITUATIONS, generate

__all__ = ["MIXTURE", "ROADS", "SITUATIONS", "generate"]
