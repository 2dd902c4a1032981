"""What importing megatron and NeMo does beside importing, and is not wanted."""

from __future__ import annotations

import sys
from types import ModuleType

UNIFIED_MEMORY = "megatron.core.inference.unified_memory"


def build_nothing() -> None:
    """Keep megatron from compiling a C++ extension while it is imported; call before megatron is imported.

    megatron-core 0.15.3 builds an allocator for its own inference engine, which nothing here uses, through torch's
    `load_inline`. That takes a lock file in the home directory which outlives its owner: one process killed at that
    moment, and every later one, on every node that shares the home, waits at its import for ever. Megatron's module
    for it is stood in for by one that says what Megatron itself says where the build fails: there is none.
    """
    if UNIFIED_MEMORY in sys.modules:
        return
    module = ModuleType(UNIFIED_MEMORY, "Stands in for megatron's, which builds an extension when imported.")
    module.has_unified_memory = False  # type: ignore[attr-defined]
    module.create_unified_mempool = _no_unified_memory  # type: ignore[attr-defined]
    sys.modules[UNIFIED_MEMORY] = module


def _no_unified_memory() -> None:
    raise RuntimeError("megatron's unified memory pool is not built in this program: unified_memory_level must be 0")
