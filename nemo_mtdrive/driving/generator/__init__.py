"""The scene generator: small worlds with reacting traffic and an expert driver, a scene a seed."""

from nemo_mtdrive.driving.generator.generate import ROADS, SITUATIONS, generate

__all__ = ["ROADS", "SITUATIONS", "generate"]
