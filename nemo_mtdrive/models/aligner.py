"""Every import of NeMo-Aligner (0.7.0, archived 2025-05) in the project, so that leaving it is this file's work.

What we take: the interface that its users know a trainable generative model by, and the vocabulary-parallel log-prob
function, which is what `logprobs` is tested against.
"""

from __future__ import annotations

from nemo_aligner.models.alignable_interface import AlignableGenerativeInterface
from nemo_aligner.utils.distributed import from_parallel_logits_to_logprobs

__all__ = ["AlignableGenerativeInterface", "from_parallel_logits_to_logprobs"]
