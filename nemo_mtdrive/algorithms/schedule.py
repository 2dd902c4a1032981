"""The learning rate over the steps of a training: linear warm-up, then a cosine."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, lr: float, warmup_steps: int, end: float) -> float:
    """Of step 0 .. `steps` - 1: up to `lr` in `warmup_steps`, then down a cosine that is at `end` * `lr` after the last."""
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return lr * (end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * done)))
