"""Rollout speed: an engine, and HF `generate` beside the native one; same tiny model, prompts and sampling temperature.

    python benchmarks/rollout.py [--json] [--threads N]
    .venv-rollout/bin/python benchmarks/rollout.py --engine vllm [--json] [--threads N]      after `make rollout-env`

tokens/s are written tokens by wall time, prompts and images included; tokens a CPU second count the CPU time of the engine's
processes too, which a busy machine disturbs less. Three turns: HF computes the whole conversation anew each turn (its
`generate` keeps no cache between calls), the engine only what is new.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_mtdrive.config import RolloutConfig
from nemo_mtdrive.dialogue.conversation import next_user_turn, open_conversation
from nemo_mtdrive.dialogue.prompt import first_question
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.models.tiny import tiny_hf_config
from nemo_mtdrive.rollout.model_driver import ENGINES
from nemo_mtdrive.rollout.vllm_weights import hf_weight_shapes
from nemo_mtdrive.torchvision_ops import declare_torchvision_operators
from nemo_mtdrive.transfer.images import grid_of, patchify

NEW_TOKENS = 40
GROUP = 8
WARM_UP_SEED = 10**6
FEEDBACK = (
    "This was your previous trajectory prediction. Analyze this trajectory data and propose a revised prediction. "
    "Trajectory Point 1: (+21.73, 0.0, 0.0) with Objects: (34.14, -0.85, 1.59, 10.26, 2.95, 4.39, -0.02, vehicle)."
)


class Setting:
    """The model, its weights, the engine and a prompt with its image."""

    def __init__(self, seed: int, engine: str) -> None:
        self.tokenizer = tokenizer = Tokenizer.load(TINY_TOKENIZER)
        self.config = tiny_hf_config(
            vocab_size=tokenizer.vocab_size, image_pad=tokenizer.image_pad, video_pad=tokenizer.video_pad,
            vision_start=tokenizer.vision_start, vision_end=tokenizer.vision_end, im_start=tokenizer.im_start,
            im_end=tokenizer.im_end,
        )  # fmt: skip
        settings = RolloutConfig(max_context=2048, max_running=64, dtype="float32")
        self.engine = ENGINES[engine](self.config, tokenizer, settings, "cpu")
        self.weights = random_weights(self.config, seed)
        self.engine.load_weights(self.weights.items(), version=0)
        self.image = np.random.default_rng(seed).integers(0, 256, (112, 224, 3), dtype=np.uint8)
        history = np.array([[-9.44, 0.02, -0.02], [-6.21, -0.02, 0.0], [-3.05, -0.03, 0.0], [0.0, 0.0, 0.0]])
        self.prompt = open_conversation(tokenizer, first_question(history, "GO STRAIGHT"), grid_of(self.image))
        self.user_turn = next_user_turn(tokenizer, FEEDBACK)

    def open_reference(self) -> None:
        """HF's own model with the same weights; in the training environment, whose transformers has these names."""
        declare_torchvision_operators()
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        self.reference = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(dict(self.config))).eval()
        self.reference.load_state_dict(self.weights, strict=True)

    def play(self, sequences: int, turns: int, seed: int = 0) -> tuple[int, list[np.ndarray], np.ndarray]:
        """Tokens written, the conversations, and the log-probs of the first answer of the first sequence."""
        groups = [[f"{scene}/{i}" for i in range(GROUP)] for scene in range(sequences // GROUP)]
        names = [name for group in groups for name in group]
        for group in groups:
            self.engine.add(group, self.prompt, self.image)
        written, texts, first = 0, dict.fromkeys(names, self.prompt), np.zeros(0)
        for turn in range(turns):
            if turn:
                for name in names:
                    self.engine.extend(name, self.user_turn)
                    texts[name] = np.concatenate((texts[name], self.user_turn))
            answers = self.engine.generate(names, NEW_TOKENS, 1.0, [seed + 1000 * turn + i for i in range(sequences)])
            first = answers[names[0]].logprobs if turn == 0 else first
            for name in names:
                written += len(answers[name].tokens)
                texts[name] = np.concatenate((texts[name], answers[name].tokens))
        self.engine.remove(names)
        return written, list(texts.values()), first

    @torch.no_grad()
    def play_hugging_face(self, sequences: int, turns: int) -> int:
        """The same with `generate`: one batch a turn, left-padded by HF's convention; returns tokens written."""
        pad, stop = self.tokenizer.end_of_text, self.tokenizer.im_end
        pixels, grid = patchify([self.image] * sequences)
        texts = [self.prompt.tolist() for _ in range(sequences)]
        written = 0
        for turn in range(turns):
            if turn:
                texts = [text + self.user_turn.tolist() for text in texts]
            width = max(len(text) for text in texts)
            ids = torch.tensor([[pad] * (width - len(text)) + text for text in texts])
            mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
            self.reference.rope_deltas = None
            out = self.reference.generate(
                input_ids=ids, attention_mask=mask, pixel_values=pixels, image_grid_thw=grid,
                max_new_tokens=NEW_TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=stop,
                pad_token_id=pad, suppress_tokens=self.tokenizer.forbidden.tolist(),
            )[:, width:]  # fmt: skip
            for row, answer in enumerate(out.tolist()):
                answer = answer[: answer.index(stop) + 1] if stop in answer else answer
                texts[row] += answer
                written += len(answer)
        return written

    @torch.no_grad()
    def logprob_gap(self) -> float:
        """Largest difference between the engine's and HF's log-prob over one answer."""
        _, texts, logprobs = self.play(GROUP, 1)
        ids = torch.from_numpy(texts[0].astype(np.int64))[None]
        pixels, grid = patchify([self.image])
        self.reference.rope_deltas = None
        logits = self.reference(input_ids=ids, pixel_values=pixels, image_grid_thw=grid).logits
        theirs = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()[len(self.prompt) - 1 :]
        return float(np.abs(theirs - logprobs).max())


def random_weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Normal matrices of HF's deviation, norms of 1, biases of 0; the same in both environments."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * config["initializer_range"] if len(shape) > 1
        else torch.full(shape, float(name.endswith(".weight")))
        for name, shape in hf_weight_shapes(config).items()
    }  # fmt: skip


def cpu_seconds() -> float:
    """CPU time so far of this process and all below it: vLLM computes in processes of its own."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = int(stat.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        used[pid] = int(fields[11]) + int(fields[12])
    family = [os.getpid()]
    for pid in family:
        family += children.get(pid, [])
    return sum(used[pid] for pid in family) / os.sysconf("SC_CLK_TCK")


def best_rates(play: Callable[[], int], repeats: int) -> tuple[float, float]:
    """Tokens a second, and a CPU second, each of the best of some runs: other work only ever slows a run down."""
    wall, cpu = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), cpu_seconds()
        written = play()
        wall.append(written / (time.perf_counter() - start))
        cpu.append(written / (cpu_seconds() - used))
    return max(wall), max(cpu)


def measure(engine: str, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # of the processes that vLLM starts
    start, used = time.perf_counter(), cpu_seconds()
    setting = Setting(0, engine)
    figures = {"start_s": time.perf_counter() - start, "start_cpu_s": cpu_seconds() - used}
    setting.play(GROUP, 2, seed=WARM_UP_SEED)
    peers: dict[str, float] = {}
    for sequences, turns in ((8, 1), (32, 1), (32, 3), (8, 3)):
        name = f"{sequences}_sequences_{turns}_turn{'s' if turns > 1 else ''}_tokens_per"
        print(f"{name}: {engine}", file=sys.stderr)
        rates = best_rates(lambda s=sequences, t=turns: setting.play(s, t)[0], 2 if turns == 1 or sequences == 8 else 1)
        figures[f"{name}_s"], figures[f"{name}_cpu_s"] = rates
    if engine == "native":
        setting.open_reference()
        for sequences, turns in ((8, 1), (32, 1), (8, 3)):  # three turns of 32 would take HF most of a minute
            name = f"{sequences}_sequences_{turns}_turn{'s' if turns > 1 else ''}_tokens_per"
            print(f"{name}: HF generate", file=sys.stderr)
            rates = best_rates(lambda s=sequences, t=turns: setting.play_hugging_face(s, t), 1)
            peers[f"hf_generate_{name}_s"], peers[f"hf_generate_{name}_cpu_s"] = rates
        figures["largest_logprob_gap_to_hf"] = setting.logprob_gap()
    setting.engine.close()
    ratios = {name: figures[name] / peers[f"hf_generate_{name}"] for name in figures if f"hf_generate_{name}" in peers}
    figures["parameters"] = float(sum(weight.numel() for weight in setting.weights.values()))
    machine = {"cpu": platform.processor() or platform.machine(), "cpus": os.cpu_count(), "threads": threads,
               "torch": torch.__version__}  # fmt: skip
    return {"benchmark": "rollout", "command": " ".join(["python", *sys.argv]), "machine": machine, "engine": engine,
            "figures": figures, "peers": peers, "ratios": ratios}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1: busy cores hurt more)")
    parser.add_argument("--engine", choices=tuple(ENGINES), default="native", help="vllm: in the rollout environment")
    arguments = parser.parse_args()
    result = measure(arguments.engine, arguments.threads)
    if arguments.json:
        print(json.dumps(result))
    else:
        for group in ("figures", "peers", "ratios"):
            for name, value in result[group].items():
                print(f"{group:8} {name:50} {value:.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
