"""The whole RL step with 1080p images, IPSS and IPTC on and off: what the paper's 2.5x is made of (Section 3.4).

    python benchmarks/step.py [--json] [--scenes 4 --group 8 --repeats 3] [--trace DIR]

One rollout worker and one training rank play and train real steps: generated scenes with 1932 x 1092 camera pictures, the
native engine, PDM scoring and feedback over several turns, weight sync, log-probs, reference, update. Tower and projector
are frozen unless `--train-vision` says otherwise, as the paper's cache of visual embeddings needs it. The four variants

                 IPSS on                                   IPSS off
    IPTC on      streamed, built once a step               batch at the end, built once
    IPTC off     streamed, built anew for each phase       batch at the end, built anew for each phase

take turns, so that other work on the machine meets all alike; medians are given. IPSS off is the paper's starting point:
all rollouts wait for the last, and each is sent with its own float32 pixels. The first round is not timed; in it every
tensor of every micro-batch is compared: all variants must train on the same bits, and all rounds give the same losses.

A step's seconds are split by the spans of both processes (docs/step.md): a moment belongs to computing where anything
computes, and only the rest to moving data. The model is small, since there is no GPU: its sizes are chosen so that moving
data takes about as large a part of the step with both off as in the paper, (1250 s - 490 s) / 1250 s = 61%.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from step_worker import MEGABYTE, model_of, scenes_of, work

from nemo_mtdrive.config import Config, load_config, save_config
from nemo_mtdrive.process import SHM_ROOT, free_port
from nemo_mtdrive.telemetry import spans
from nemo_mtdrive.telemetry.timeline import TRANSFER_PHASES, StepTimeline

PAPER_SHARE = (1250 - 490) / 1250
LINKS = {True: "shm", False: "baseline"}
VARIANTS = {"both_off": (False, False), "ipss_only": (True, False), "iptc_only": (False, True), "both_on": (True, True)}
"""Name -> (IPSS, IPTC)."""
LOSSES = ("loss", "kl", "grad_norm", "logprob_gap/max")
Figures = dict[str, float]


def main() -> int:
    """Run the benchmark; JSON or a table on stdout; 1 where the variants did not compute the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    for name, value, text in (
        ("scenes", 4, "scenes a step"), ("group", 8, "rollouts of each scene"), ("turns", 3, "turns of an episode at most"),
        ("answer-tokens", 16, "tokens of an answer at most"), ("repeats", 3, "timed rounds"),
        ("width", 1932, "of a picture"),
        ("height", 1092, "of a picture; both multiples of 28"), ("hidden", 128, "width of the language model"),
        ("layers", 1, "of the language model"), ("vision-hidden", 64, "width of the vision tower"),
        ("vision-layers", 1, "of the vision tower"), ("threads", 2, "of the engine and of the trainer"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--train-vision", action="store_true",
                        help="train the vision tower too: IPTC then keeps pixels in place of visual embeddings")
    parser.add_argument("--trace", type=Path, metavar="DIR", help="keep trace.json and a timeline picture of each variant")
    options = parser.parse_args()
    # NeMo logs to stdout, which is for the results
    with redirect_stdout(sys.stderr), TemporaryDirectory(prefix="mtdrive-step-") as folder:
        figures, problems = Bench(config_of(options), Path(folder), options.trace).run(options.repeats)
    report(options, figures, problems)
    return 1 if problems else 0


def config_of(options: argparse.Namespace) -> Config:
    """A run's config with the benchmark's sizes."""
    frozen = str(not options.train_vision).lower()
    return load_config("scratch_cpu", [
        f"scenes.count={options.scenes}", f"scenes.image_width={options.width}", f"scenes.image_height={options.height}",
        "parallel.tensor=1", f"rollout.threads={options.threads}", f"parallel.threads={options.threads}",
        f"rollout.max_turns={options.turns}", "rollout.temperature=1.0",
        f"rollout.max_answer_tokens={options.answer_tokens}", "rollout.max_context=8192",
        f"model.hidden_size={options.hidden}", f"model.layers={options.layers}", "model.ffn_size=128",
        f"model.vision_hidden_size={options.vision_hidden}", f"model.vision_layers={options.vision_layers}",
        "model.vision_ffn_size=64",
        f"model.freeze_vision={frozen}", f"model.freeze_projector={frozen}", "mtgrpo.kl_coefficient=0.01",
        f"mtgrpo.group_size={options.group}", f"mtgrpo.prompts_per_step={options.scenes}",
        f"mtgrpo.mini_batch_prompts={options.scenes}", "mtgrpo.micro_batch_tokens=32768", "mtgrpo.lr=1e-5",
        "transfer.image_store_mb=2048", "transfer.tensor_cache_mb=8192",
    ])


class Bench:
    """Two workers (one a link, the other idle), this process as the training rank, and the steps between them."""

    def __init__(self, config: Config, folder: Path, trace: Path | None) -> None:
        self.config = config
        self.folder = folder
        self.trace = trace
        self.run_id = f"step-{os.getpid()}"
        self._version = 0

    def run(self, repeats: int) -> tuple[dict[str, list[Figures]], list[str]]:
        """Figures of the timed steps by variant, and what did not agree."""
        from nemo_mtdrive.transfer.segments import sweep

        save_config(self.config, self.folder / "config.yaml")
        spawn = multiprocessing.get_context("spawn")
        workers = [spawn.Process(target=work, daemon=True, args=(
            str(self.folder), self.run_id, link, self._address(link, "control"), self._address(link, "episodes"), link))
            for link in LINKS.values()]
        for worker in workers:
            worker.start()
        try:
            return self._rounds(repeats)
        finally:
            for worker in workers:
                worker.terminate()
                worker.join(30)
            spans.stop()
            sweep(SHM_ROOT, self.run_id)

    def _address(self, link: str, what: str) -> str:
        return f"ipc://{self.folder}/{link}-{what}"

    def _rounds(self, repeats: int) -> tuple[dict[str, list[Figures]], list[str]]:
        self._open()
        timed: dict[str, list[Figures]] = {name: [] for name in VARIANTS}
        losses: dict[str, Figures] = {}
        contents: dict[str, str] = {}
        problems: list[str] = []
        for number in range(repeats + 1):
            for name, (ipss, iptc) in VARIANTS.items():
                begin = time.monotonic()
                found, content = self._step(name, ipss, iptc, compare=number == 0)
                words = "compared" if number == 0 else f"step {found['timeline/step_s']:.2f} s"
                print(f"round {number} of {repeats}, {name}: {words} ({time.monotonic() - begin:.0f} s)", file=sys.stderr)
                contents.setdefault(name, content)
                losses.setdefault("first", {key: found[key] for key in LOSSES})
                problems += [f"{name}, round {number}: {key} is {found[key]!r}, {losses['first'][key]!r} before"
                             for key in LOSSES if not abs(found[key] - losses["first"][key]) <= 1e-6]
                if number:
                    timed[name].append(found)
        problems += [f"{name} trains on other tensors than both_off" for name, content in contents.items()
                     if content != contents["both_off"]]
        for client in self._clients.values():
            client.stop()
        return timed, problems

    def _open(self) -> None:
        """Everything of the training rank that lives longer than a step."""
        import torch

        from nemo_mtdrive.algorithms.rollouts import Deadlines, RolloutClient
        from nemo_mtdrive.callbacks.ipss import IPSS
        from nemo_mtdrive.callbacks.weight_sync import WeightSync
        from nemo_mtdrive.dialogue.tokenizer import TINY_TOKENIZER, Tokenizer
        from nemo_mtdrive.models import parallel
        from nemo_mtdrive.models.tiny import random_hf_state
        from nemo_mtdrive.rollout.pool import PoolLimits, WorkerPool
        from nemo_mtdrive.transfer.link import open_receiver
        from nemo_mtdrive.transfer.segments import RunFolder
        from nemo_mtdrive.transfer.weights import WeightPublisher

        torch.set_num_threads(self.config.parallel.threads)
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        parallel.initialise(1, 1, self.config.seed, 600)
        self._tokenizer = Tokenizer.load(TINY_TOKENIZER)
        self._hf = model_of(self.config, self._tokenizer)
        self._weights = random_hf_state(self._hf, self.config.seed)
        self._scene_ids = list(scenes_of(self.config).ids())
        self._model: Any = None
        spans.record(self.folder / "spans", "trainer")
        self._timeline = StepTimeline(self.folder, keep_steps=1)
        publisher = WeightPublisher(RunFolder(SHM_ROOT, self.run_id), writes=True, keep=4)
        self._sync = WeightSync(publisher, lambda: self._model.export_hf_pieces(MEGABYTE), version=0)
        self._clients: dict[bool, RolloutClient] = {}
        for ipss, link in LINKS.items():
            receiver = partial(open_receiver, link, self._address(link, "episodes"), self.run_id, shm_root=SHM_ROOT,  # type: ignore[arg-type]
                               image_budget_bytes=self.config.transfer.image_store_mb * MEGABYTE, keep_frames=True)
            callback = IPSS(open_receiver=receiver)
            callback.setup(None, None, "fit")
            pool = WorkerPool(self._address(link, "control"), [link], limits=PoolLimits(300.0, 600.0, 1),
                              on_lost=_lost)
            self._clients[ipss] = RolloutClient(callback, self._sync, pool, Deadlines(600.0, 600.0),
                                                parallel.check_agreement, decode_each_time=False)
        print("workers start: imports, kernels", file=sys.stderr)
        for client in self._clients.values():
            client.wait_ready()

    def _step(self, name: str, ipss: bool, iptc: bool, compare: bool) -> tuple[Figures, str]:
        """One step from the same weights; its metrics, and with `compare` a digest of all that it trains on."""
        from nemo_mtdrive.algorithms.mtgrpo import MTGRPOTrainer
        from nemo_mtdrive.algorithms.policy import DataShare
        from nemo_mtdrive.algorithms.updates import DumpPlace
        from nemo_mtdrive.callbacks.iptc import IPTC
        from nemo_mtdrive.models import parallel

        self._model = self._new_model()
        client = self._clients[ipss]
        client.decode_each_time = not iptc
        cache = IPTC(parallel.device(), self.config.transfer.tensor_cache_mb * MEGABYTE, enabled=iptc)
        cache.watch(self._model.vision_metrics)
        trainer = MTGRPOTrainer(self.config.mtgrpo, self._model, DataShare(0, 1, parallel.device()), client, cache,
                                self._tokenizer, self._scene_ids, self.config.seed, self.config.rollout,
                                DumpPlace(self.folder / "nan", 0, writes=False))
        client.on_picture = trainer.pictures.prefetch if iptc else None
        if iptc and self.config.model.freeze_vision:
            trainer.pictures.encode = self._model.encode_images
        digest = _digest_of(trainer) if compare else None
        self._version += 1
        client.policy_version = self._version
        client.publish()
        self._version += 1  # the step publishes what it has learned
        began = time.monotonic_ns()
        found = trainer.step(0)
        spans.flush()
        found |= self._timeline.close_step(0, began)
        if self.trace is not None:
            keep_trace(self.folder, self.trace, name)
        return found, digest() if digest is not None else ""

    def _new_model(self) -> Any:
        """The policy with the benchmark's weights, its reference and a fresh optimizer."""
        import torch

        from nemo_mtdrive.models.qwen25_vl import OptimizerOptions, build_model

        frozen = self.config.model.freeze_vision
        model = build_model(
            self._hf, optimizer=OptimizerOptions(1.0, 0.0, 0.9, 0.95, 1e-8, False), sequence_parallel=False,
            dtype=torch.float32, max_length=self.config.rollout.max_context, freeze_vision=frozen, freeze_projector=frozen)
        model.load_hf_state(self._weights)
        model.prepare_for_training()
        model.set_reference()
        return model


def _lost(name: str, pid: int, reason: str) -> None:
    print(f"rollout worker {name} (process {pid}) {reason}", file=sys.stderr)


def _digest_of(trainer: Any) -> Callable[[], str]:
    """Watches what the trainer's phases read; the digest is of all of it, in order, advantages included."""
    from nemo_mtdrive.transfer.images import pixel_values

    running, build = blake2b(digest_size=16), trainer.tensors

    def tensors(micro: Any) -> Any:
        found = build(micro)
        inputs = {name: tensor for name, tensor in found.items() if name != "image_features"}
        if "pixel_values" not in inputs:  # embeddings stand for them: compare what they were made of
            find = trainer.rollouts.images(micro.episodes)
            keys = dict.fromkeys(key for episode in micro.episodes for key in episode.image_keys)
            inputs["pixel_values"] = pixel_values([find(key) for key in keys])
        for name in sorted(inputs):
            running.update(name.encode())
            running.update(inputs[name].contiguous().numpy().data)
        return found

    trainer.tensors = tensors
    return running.hexdigest


def keep_trace(folder: Path, where: Path, name: str) -> None:
    """Copy a step's trace and draw it."""
    from nemo_mtdrive.evaluation.timeline import last_step

    where.mkdir(parents=True, exist_ok=True)
    (where / f"{name}.json").write_bytes((folder / "trace.json").read_bytes())
    shown = last_step(folder)
    assert shown is not None
    (where / f"{name}.svg").write_text(shown.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def report(options: argparse.Namespace, timed: dict[str, list[Figures]], problems: list[str]) -> None:
    """On stdout; what did not agree on stderr."""
    figures = {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in timed.items()}
    step = {name: row["timeline/step_s"] for name, row in figures.items()}
    off, on = figures["both_off"], figures["both_on"]
    ratios = {
        "both": step["both_off"] / step["both_on"], "ipss_alone": step["both_off"] / step["ipss_only"],
        "iptc_alone": step["both_off"] / step["iptc_only"], "iptc_on_top_of_ipss": step["ipss_only"] / step["both_on"],
        "wire_bytes": off["transfer/wire_bytes"] / on["transfer/wire_bytes"],
    }
    shares = {"transfer_share_both_off": off["timeline/transfer_share"], "paper": PAPER_SHARE,
              "transfer_share_both_on": on["timeline/transfer_share"]}
    for problem in problems:
        print(f"NOT THE SAME: {problem}", file=sys.stderr)
    machine = {"cpus": os.cpu_count(), "architecture": platform.machine(), "python": platform.python_version(),
               "load_average": os.getloadavg()[0]}
    if options.json:
        print(json.dumps({
            "benchmark": "step", "machine": machine, "command": " ".join(["benchmarks/step.py", *sys.argv[1:]]),
            "load": {key: value for key, value in vars(options).items() if key not in ("json", "trace")},
            "figures": figures, "steps_s": {name: [row["timeline/step_s"] for row in rows] for name, rows in timed.items()},
            "shares": shares, "ratios": ratios, "same_numbers": not problems, "problems": problems}))
        return
    phases = [key.removeprefix("timeline/exposed_s/") for key in off if key.startswith("timeline/exposed_s/")]
    print(f"{options.scenes} scenes x {options.group} rollouts, pictures {options.width} x {options.height}, "
          f"median of {options.repeats} steps, load average {machine['load_average']:.1f}")
    print(f"{'exposed seconds':24}" + "".join(f"{name:>12}" for name in figures))
    for phase in phases:
        mark = " *" if phase in TRANSFER_PHASES else ""
        print(f"{phase + mark:24}" + "".join(f"{row[f'timeline/exposed_s/{phase}']:12.3f}" for row in figures.values()))
    print(f"{'step':24}" + "".join(f"{seconds:12.3f}" for seconds in step.values()))
    print(f"{'* of the step':24}" + "".join(f"{row['timeline/transfer_share']:12.1%}" for row in figures.values()))
    print(f"{'wire MB':24}" + "".join(f"{row['transfer/wire_bytes'] / 1e6:12.1f}" for row in figures.values()))
    print(f"{'images through the tower':24}" + "".join(
        f"{sum(value for key, value in row.items() if key.startswith('vision/encoded')):12.0f}" for row in figures.values()))
    print(f"both on against both off {ratios['both']:.2f}x (paper 2.5x); IPSS alone {ratios['ipss_alone']:.2f}x (1.5x), "
          f"IPTC on top {ratios['iptc_on_top_of_ipss']:.2f}x (1.7x); IPTC alone {ratios['iptc_alone']:.2f}x")
    print(f"moving data took {shares['transfer_share_both_off']:.0%} of the step with both off (paper: up to "
          f"{PAPER_SHARE:.0%}), {shares['transfer_share_both_on']:.1%} with both on; "
          f"{'the same numbers in all' if not problems else 'NOT THE SAME NUMBERS'}")


if __name__ == "__main__":
    raise SystemExit(main())
