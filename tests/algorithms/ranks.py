"""What gloo ranks do for `test_grids`: RL steps and SFT with the real model on a grid; rank 0 writes results.json."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from nemo_mtdrive.algorithms.batch import build_micro_batch
from nemo_mtdrive.algorithms.mini_batches import MiniBatch
from nemo_mtdrive.algorithms.mtgrpo import MTGRPOTrainer
from nemo_mtdrive.algorithms.policy import DataShare, MicroBatch
from nemo_mtdrive.algorithms.sft import SFTTrainer
from nemo_mtdrive.algorithms.updates import DumpPlace, NotFinite
from nemo_mtdrive.config import SFTConfig, SFTStage, load_config
from nemo_mtdrive.dialogue.conversation import mrope_positions
from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
from nemo_mtdrive.models import parallel
from nemo_mtdrive.models.qwen25_vl import OptimizerOptions, Qwen25VLModel, build_model
from nemo_mtdrive.models.tiny import random_hf_state, tiny_hf_config
from nemo_mtdrive.transfer.tensors import TensorCache
from nemo_mtdrive.types import Episode, Group, RolloutTask
from tests.algorithms.test_mtgrpo import INVALID, REWARDS, ScriptedRollouts, episode
from tests.algorithms.test_sft import Conversations
from tests.models.parity_checks import gradients_of

Found = dict[str, Any]
TOKENIZER = Tokenizer.load(TINY_TOKENIZER)
GRIDS = {1: {"single": (1, 1)}, 2: {"tensor": (2, 1), "pipeline": (1, 2), "data": (1, 1)}}
"""World size -> grid -> (tensor, pipeline)."""


class Pictures(ScriptedRollouts):
    """The scripted groups, each scene with a picture of its own that its rollouts share."""

    def generate(self, tasks: list[RolloutTask], *, more: bool = False) -> list[Group]:
        return [replace(group, episodes=tuple(replace(e, image_keys=(group.scene_id,)) for e in group.episodes))
                for group in super().generate(tasks, more=more)]

    def images(self, episodes: Sequence[Episode]) -> Callable[[str], np.ndarray]:
        return picture


def picture(key: str) -> np.ndarray:
    return np.random.default_rng(ord(key[0])).integers(0, 256, (28, 28, 3), dtype=np.uint8)


def new_model() -> Qwen25VLModel:
    hf = tiny_hf_config(
        vocab_size=TOKENIZER.vocab_size, image_pad=TOKENIZER.image_pad, video_pad=TOKENIZER.video_pad,
        vision_start=TOKENIZER.vision_start, vision_end=TOKENIZER.vision_end, im_start=TOKENIZER.im_start,
        im_end=TOKENIZER.im_end, layers=2, hidden=256, mlp=128)
    # a large epsilon: Adam's first steps are else the signs of gradients, which for the smallest are rounding
    model = build_model(hf, optimizer=OptimizerOptions(1.0, 0.0, 0.9, 0.95, 1e-3, distributed=False),
                        sequence_parallel=False, dtype=torch.float32, max_length=512)
    model.load_hf_state(random_hf_state(hf, 3))
    model.prepare_for_training()
    model.set_reference()
    return model


def share() -> DataShare:
    ranks = parallel.ranks()
    return DataShare(ranks.data_rank, ranks.data_size, torch.device("cpu"))


def place(folder: Path) -> DumpPlace:
    ranks = parallel.ranks()
    return DumpPlace(folder, ranks.data_rank, ranks.tensor_rank == 0 and ranks.pipeline_rank == 0)


class Watched(MTGRPOTrainer):
    """Keeps the metrics of every update, and adds how far its ratios are from 1."""

    seen: list[dict[str, float]]
    poison: int | None = None
    """Step in which one advantage becomes NaN, on data rank 0 only."""

    def assemble(self, step: int, groups: list[Group]) -> list[MiniBatch]:
        mini_batches = super().assemble(step, groups)
        if self.poison == step and self.share.rank == 0:
            micro = mini_batches[0][0]
            micro.advantages[0][micro.episodes[0].turns[0].start] = np.nan
        return mini_batches

    def update(self, step: int, number: int, mini_batch: MiniBatch) -> dict[str, float]:
        self.seen.append(super().update(step, number, mini_batch))
        return self.seen[-1]

    def _micro_batch_loss(self, logprobs: Tensor, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super()._micro_batch_loss(logprobs, batch)
        away = (logprobs.detach() - batch["old_logprobs"]).abs()[batch["mask"]].sum()
        return loss, metrics | {"away": away}


def rl_trainer(model: Qwen25VLModel, folder: Path, *overrides: str) -> Watched:
    config = load_config("scratch_cpu", [
        "mtgrpo.prompts_per_step=3", "mtgrpo.mini_batch_prompts=3", "mtgrpo.group_size=4", "mtgrpo.micro_batch_tokens=200",
        "mtgrpo.lr=1e-4", "mtgrpo.kl_coefficient=0.05", "mtgrpo.entropy_coefficient=0.01", "rollout.max_turns=3",
        "rollout.temperature=0.8", *overrides])
    trainer = Watched(config.mtgrpo, model, share(), Pictures(TOKENIZER), TensorCache("cpu", 1 << 30, True), TOKENIZER,
                      list(REWARDS), seed=4, rollout=config.rollout, dump=place(folder))
    trainer.seen = []
    return trainer


def rl(folder: Path) -> Found:
    """Two steps of two mini-batches, passed through twice."""
    trainer = rl_trainer(new_model(), folder, "mtgrpo.prompts_per_step=2", "mtgrpo.mini_batch_prompts=1",
                         "mtgrpo.inner_updates=2")
    steps = [trainer.step(step) for step in range(2)]
    return {"updates": trainer.seen, "gap": [step["logprob_gap/mean"] for step in steps],
            "invalid": [step["episodes/invalid"] for step in steps], "weights": checksum(trainer.policy)}


def lonely(folder: Path) -> Found:
    """A mini-batch of one episode: with two data ranks one has nothing to learn."""
    trainer = rl_trainer(new_model(), folder)
    [group] = Pictures(TOKENIZER).generate([RolloutTask("a", 4, 0, 0, 0, 1.0)])
    trainer.policy.temperature = 0.8
    trainer.policy.set_lr(1e-3)
    [mini_batch] = trainer.assemble(0, [replace(group, episodes=group.episodes[:1])])
    trainer.recompute_old_logprobs([mini_batch])
    trainer.compute_reference_logprobs([mini_batch])
    return {"update": trainer.update(0, 0, mini_batch), "weights": checksum(trainer.policy)}


def sft(folder: Path) -> Found:
    settings = SFTConfig([SFTStage(steps=3)], batch_size=6, micro_batch_tokens=120, lr=1e-4, warmup_steps=0)
    model = new_model()
    trainer = SFTTrainer(settings, model, share(), Conversations(TOKENIZER), TOKENIZER, 1000, place(folder))
    steps = [trainer.step(step) for step in range(3)]
    return {"steps": [[step["loss"], step["grad_norm"], step["tokens"]] for step in steps], "weights": checksum(model)}


def checksum(model: Any) -> dict[str, list[float]]:
    """Sum and sum of squares of every weight, whole."""
    return {name: [tensor.double().sum().item(), tensor.double().square().sum().item()]
            for name, tensor in model.export_hf_state()}


def state_of(model: Qwen25VLModel) -> list[Tensor]:
    """Copies of this rank's weights and of all that its optimizer keeps."""
    assert model.optimizer is not None
    kept = [parameter.detach().clone() for parameter in model.module.parameters()]
    for part in getattr(model.optimizer, "chained_optimizers", [model.optimizer]):
        for held in part.optimizer.state.values():
            kept += [torch.as_tensor(value).clone() for value in held.values()]
        kept += [torch.as_tensor(group.get("step", 0)) for group in part.optimizer.param_groups]
    return kept


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """On every rank, bit by bit."""
    here = len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    everywhere = torch.tensor([float(here)])
    dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
    return bool(everywhere)


def poisoned(folder: Path) -> Found:
    """A NaN in an advantage of data rank 0, and one in a gradient of the last rank alone while the loss is finite."""
    model = new_model()
    trainer = rl_trainer(model, folder, "mtgrpo.max_skipped_updates=2", "mtgrpo.prompts_per_step=1",
                         "mtgrpo.mini_batch_prompts=1")
    found: Found = {"healthy": trainer.step(0)["skipped_updates"]}
    before = state_of(model)
    trainer.poison = 1
    step = trainer.step(1)
    found |= {"advantage": step["skipped_updates"], "has_loss": "loss" in step, "untouched": same(before, state_of(model))}
    trainer.poison = None
    last = parallel.ranks().rank == parallel.ranks().world - 1
    hook = next(model.module.parameters()).register_hook(lambda gradient: gradient * torch.nan if last else gradient)
    trainer.step(2)
    hook.remove()
    found |= {"gradient": trainer.seen[-1]["skipped_updates"], "gradient_loss": trainer.seen[-1]["loss"],
              "gradient_norm": repr(trainer.seen[-1]["grad_norm"]), "still_untouched": same(before, state_of(model))}
    found["goes_on"] = trainer.step(3)["skipped_updates"]
    found["moved"] = not same(before, state_of(model))
    next(model.module.parameters()).data.fill_(torch.nan)
    try:
        trainer.step(4)
    except NotFinite as error:
        found["stops"] = str(error)
    dist.barrier()
    found["dumps"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return found


def layouts(_: Path) -> Found:
    """Four episodes of two pictures packed in a row, and the same padded in a batch: loss and gradients of Eq. 4's terms."""
    tasks = [RolloutTask(scene, 4, 0, 0, 0, 1.0) for scene in "aaab"]
    rows = [replace(episode(TOKENIZER, task, i, REWARDS[task.scene_id][i]), image_keys=(task.scene_id,))
            for i, task in enumerate(tasks) if (task.scene_id, i) != INVALID]
    packed = build_micro_batch(rows, picture, TOKENIZER, torch.device("cpu"))
    pad = torch.nn.utils.rnn.pad_sequence

    def padded(columns: list[np.ndarray]) -> Tensor:
        return pad([torch.as_tensor(column) for column in columns], batch_first=True)

    places = [mrope_positions(e.tokens, e.image_grids, TOKENIZER.image_pad, TOKENIZER.vision_start) for e in rows]
    batch = {
        "tokens": padded([e.tokens.astype(np.int64) for e in rows]),
        "positions": torch.stack([padded([place[axis] for place in places]) for axis in range(3)]),
        "lengths": torch.tensor([len(e.tokens) for e in rows]),
        "mask": padded([e.turn_of_token >= 0 for e in rows]),
    } | {name: packed[name] for name in ("pixel_values", "image_grid_thw", "image_index")}
    model, found = new_model(), []
    model.want_entropy = True
    model.loss_function = lambda logprobs, micro: ((logprobs * micro["mask"] - 0.3 * micro["entropy"]).sum() / 100, {})
    for micro in (packed, batch):
        model.prepare_for_training_step()
        loss, _metrics = model.get_loss_and_metrics([micro], forward_only=False)
        found.append((loss, gradients_of(model)))
    (loss, mine), (expected, theirs) = found
    norm = sum(gradient.double().square().sum() for gradient in theirs.values()) ** 0.5
    away = sum((mine[name] - theirs[name]).double().square().sum() for name in theirs) ** 0.5
    return {"tokens": [packed["tokens"].numel(), batch["tokens"].numel()], "pictures": len(packed["image_grid_thw"]),
            "loss": abs(loss - expected) / abs(expected), "gradient": (away / norm).item(),
            "worst": max(((mine[n] - g).norm() / g.norm()).item() for n, g in theirs.items() if g.any())}


def main(directory: Path) -> None:
    """Run every check on every grid of this world."""
    torch.set_num_threads(1)
    results: dict[str, Found] = {}
    for grid, (tensor, pipeline) in GRIDS[int(os.environ["WORLD_SIZE"])].items():
        parallel.initialise(tensor, pipeline, seed=1, timeout_s=300)
        checks = [rl, lonely, sft, poisoned, *([layouts] if grid == "single" else [])]
        results[grid] = {check.__name__: check(directory / grid / check.__name__) for check in checks}
        dist.barrier()
        parallel_state.destroy_model_parallel()
    if dist.get_rank() == 0:
        (directory / "results.json").write_text(json.dumps(results, indent=1))
    parallel.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
