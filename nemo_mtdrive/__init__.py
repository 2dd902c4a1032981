"""nemo_mtdrive: MTDrive (arXiv 2601.22930), multi-turn RL that teaches Qwen2.5-VL to drive, on Megatron and NeMo."""

__version__ = "0.1.0"
