"""Generated scenes that several tests look at."""

from __future__ import annotations

import pytest

from nemo_mtdrive.driving.generator import MIXTURE, generate
from nemo_mtdrive.driving.scene import Scene


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    """Forty scenes of the generator's own mixture."""
    return [generate(seed, MIXTURE) for seed in range(40)]
