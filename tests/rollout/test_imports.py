"""What the package may cost to import."""

from __future__ import annotations

import subprocess
import sys

from nemo_mtdrive.torchvision_ops import declare_torchvision_operators


def test_the_control_channel_and_the_episodes_need_no_torch():
    """So a worker has its connection, and can report a failure, before the seconds that torch takes."""
    lines = "import sys, nemo_mtdrive.rollout.worker, nemo_mtdrive.rollout.pool; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_declaring_torchvisions_operators_twice_is_harmless():
    declare_torchvision_operators()
    declare_torchvision_operators()
    import torchvision

    assert torchvision.__version__
