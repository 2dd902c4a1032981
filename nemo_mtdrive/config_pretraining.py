"""Settings of a tiny model's pretraining: what a released Qwen2.5-VL brings along."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PretrainingConfig:
    """A vision tower that learns what roads look like before there is language: `nemo-mtdrive pretrain-vision`."""

    steps: int = 800
    batch_size: int = 48
    """Pictures of a step, half of them mirrored."""
    lr: float = 1e-3
    """At the end of the warm-up; a cosine takes it down to a fiftieth."""
    warmup_steps: int = 30
    weight_decay: float = 0.02
    ground_weight: float = 1.0
    """Of the ground ahead, told cell by cell, beside the trajectory."""
    save_every: int = 100
    """Steps between two states that a killed command goes on from."""
    measured: int = 400
    """Held-out scenes, at most, that the report measures on."""


@dataclass
class LanguageConfig:
    """A language model that learns how a plan is written, without pictures: `nemo-mtdrive pretrain-language`."""

    steps: int = 600
    batch_size: int = 32
    """Conversations of a step, each drawn for it alone."""
    lr: float = 1.5e-3
    """At the end of the warm-up; a cosine takes it down to a fiftieth."""
    warmup_steps: int = 30
    weight_decay: float = 0.0
    save_every: int = 100
    """Steps between two states that a killed command goes on from."""
    measured: int = 200
    """Conversations, of others, that the report measures on; to a whole number of batches."""
