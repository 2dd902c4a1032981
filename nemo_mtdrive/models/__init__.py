"""Qwen2.5-VL on Megatron through NeMo's class.

The only package, with converters/, that imports megatron and NeMo at large. Importing it stands in for `torch.cuda`
where there is none (see `cpu`) and for what megatron would build (see `imports`), which must come before megatron.
"""

from nemo_mtdrive.models import cpu, imports

imports.build_nothing()
cpu.prepare_torch()
