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


def test_torchvisions_operators_are_declared_when_it_is_imported_and_not_before():
    """As the line in the rollout environment's .pth file asks for; twice is once."""
    lines = (
        "import sys; from nemo_mtdrive.torchvision_ops import declare_on_import; declare_on_import(); declare_on_import()\n"
        "assert 'torch' not in sys.modules and len([f for f in sys.meta_path if 'Torchvision' in type(f).__name__]) == 1\n"
        "import torchvision, torch; torch.ops.torchvision.nms"
    )
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
