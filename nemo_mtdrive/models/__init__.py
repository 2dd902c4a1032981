"""Qwen2.5-VL on Megatron through NeMo's class.

The only package, with converters/, that imports megatron and NeMo at large. Importing it stands in for `torch.cuda`
where there is none (see `cpu`), which must come before megatron is imported.
"""

from nemo_mtdrive.models import cpu

cpu.prepare_torch()
