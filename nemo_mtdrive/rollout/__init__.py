"""Rollout: the engine that writes answers, the multi-turn episodes played with it, and the worker process around both.

Importing it declares torchvision's operators where its own cannot load; that must come before transformers is imported.
"""

from nemo_mtdrive.torchvision_ops import declare_torchvision_operators

declare_torchvision_operators()
