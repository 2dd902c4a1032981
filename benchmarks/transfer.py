"""From a rollout to usable tensors in three phases, side by side: ours, verl 0.9's three ways, and the shared-memory floor.

    make peers                                       # once: verl, Ray and TransferQueue into .tools/peers
    python benchmarks/transfer.py                    # both workloads of the paper's sizes, a table
    python benchmarks/transfer.py --json > out.json  # one JSON object: machine, load, command, figures, peers, ratios
    python benchmarks/transfer.py --workloads 32x224x112 --without-peers   # our side alone, small, in seconds

A workload is ROLLOUTSxSIZE, one front image a scene, `--group` rollouts of each scene. All rollouts are ready at once; two
producers send them, four consumers (training ranks) make the tensors of log-prob, reference and update: token ids, masks,
positions and float32 pixel_values of each micro-batch of 8. Nothing is computed with them. Measured are the time from "go"
until the last consumer has its last tensor, and the bytes that were put on a socket or into shared memory.

    ours                 IPSS and IPTC on: each image once, as uint8; tensors built in the first phase, kept for the others
    ours_ipss_off        the batch at the end with float32 pixels per rollout; tensors kept
    ours_iptc_off        streamed; every phase decodes and builds anew
    ours_both_off        neither
    dataproto            verl's default: DataProto through Ray's object store, to each phase anew
    dataproto_zero_copy  the same with RAY_ENABLE_ZERO_COPY_TORCH_TENSORS=1
    transfer_queue       verl's TransferQueue, SimpleStorage with its default two units
    shared_memory_floor  a plain copy of what must move into shared memory and out of it, nothing else

Peers start with the image processor's work done; ours pays for its part of it. Each variant's first pass warms up and takes
checksums of every rollout's tokens and pixels in every phase, which must be equal everywhere; it is not timed. Variants take
turns, round by round, so that other load meets all alike; figures are medians over rounds, with the range. Peers need some
22 GB of memory for 256x540p.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfer_load import CONSUMERS, PRODUCERS, Load

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE.parent / ".tools" / "peers" / "bin" / "python"
OURS = ("ours", "ours_ipss_off", "ours_iptc_off", "ours_both_off")
PEERS = ("dataproto", "dataproto_zero_copy", "transfer_queue")
FLOOR = "shared_memory_floor"
GOALS = {"dataproto": 10.0, "transfer_queue": 3.0, "dataproto_zero_copy": 2.5}
"""Time of a peer over ours, at least."""
FLOOR_GOAL = 1.3
"""Our time over the floor's, at most."""
BYTES_GOAL = 40.0
"""Bytes that DataProto moves over ours, at least."""
Measured = dict[str, list[dict[str, float]]]


def main() -> int:
    """Run the benchmark; JSON or a table on stdout."""
    options = _options()
    try:
        loads = {text: Load.parse(text, options.group) for text in options.workloads}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    names = [*OURS, *([] if options.without_peers else PEERS), FLOOR]
    if unknown := set(options.only or ()) - set(names):
        print(f"--only {' '.join(sorted(unknown))}: choose from {', '.join(names)}", file=sys.stderr)
        return 2
    names = [name for name in names if not options.only or name in options.only]
    if set(names) & set(PEERS) and not PEERS_PYTHON.exists():
        print("the peers are not installed: run `make peers`, or give --without-peers", file=sys.stderr)
        return 2
    from nemo_mtdrive.telemetry.progress import open_progress

    before = os.getloadavg()
    results = {}
    with open_progress(sys.stderr, plain_every_s=30.0) as progress:
        for text, load in loads.items():
            with progress.phase(text, total=options.rounds * len(names), unit="measurements") as bar:
                results[text] = measure(load, text, names, options.rounds, options.passes, bar.advance)
    report = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": {"before": before, "after": os.getloadavg()},
        "command": " ".join(["python", "benchmarks/transfer.py", *sys.argv[1:]]),
        "workloads": {text: _summary(load, results[text]) for text, load in loads.items()},
    }
    print(json.dumps(report) if options.json else _table(report))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["256x540p", "32x1080p"], metavar="ROLLOUTSxSIZE",
                        help="SIZE: 540p (952x532 after resizing), 1080p (1932x1092), or WIDTHxHEIGHT in multiples of 28; "
                             "ROLLOUTS: a multiple of four groups")
    parser.add_argument("--group", type=int, default=8, help="rollouts of a scene")
    parser.add_argument("--rounds", type=int, default=3, help="how often all variants take their turn")
    parser.add_argument("--passes", type=int, default=1, help="timed passes of a variant in each of its turns")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="these variants")
    parser.add_argument("--without-peers", action="store_true", help="ours and the floor alone")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    return parser.parse_args()


def measure(
    load: Load, text: str, names: list[str], rounds: int, passes: int, advance: Callable[[], None]
) -> Measured:
    """Figures of all timed passes by variant.

    Raises:
        SystemExit: variants end with different tensors, or a peer fails.
    """
    from transfer_ours import OurSide

    found: Measured = {name: [] for name in names}
    expected: list[dict[str, int]] | None = None
    for _ in range(rounds):
        for name in names:
            if name in PEERS:
                turn = run_peer(name, text, load.group, passes)
            else:
                with OurSide(load) as side:  # for this turn only: a peer may need all of the memory in the next
                    turn = side.measure(name, passes)
            expected = expected or turn["sums"]
            if turn["sums"] != expected or any(len(phase) != load.rollouts for phase in turn["sums"]):
                raise SystemExit(f"{name} on {text} ends with other tensors than {names[0]}: the work is not equal")
            found[name] += turn["passes"]
            advance()
    return found


def run_peer(name: str, text: str, group: int, passes: int) -> dict[str, Any]:
    """A turn of a peer, in its own environment and a fresh Ray cluster."""
    command = [str(PEERS_PYTHON), str(HERE / "transfer_peers.py"), name, text, str(group), "--passes", str(passes)]
    ran = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{name} failed with {ran.returncode}:\n{ran.stderr[-2000:]}")
    turn: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return turn


def _summary(load: Load, measured: Measured) -> dict[str, Any]:
    """Medians, ranges, ratios to ours, and the goals."""
    figures = {}
    for name, passes in measured.items():
        seconds = sorted(each["total_s"] for each in passes)
        figures[name] = {key: statistics.median(each[key] for each in passes) for key in passes[0]} | {
            "least_s": seconds[0], "most_s": seconds[-1], "passes": len(passes)}
    ratios = {}
    if "ours" in figures:
        ours = figures["ours"]
        ratios = {name: row["total_s"] / ours["total_s"] for name, row in figures.items() if name not in ("ours", FLOOR)}
        if FLOOR in figures:
            ratios["ours_over_floor"] = ours["total_s"] / figures[FLOOR]["total_s"]
        ratios |= {f"{name}_bytes": figures[name]["bytes_moved"] / ours["bytes_moved"] for name in figures
                   if name not in ("ours", FLOOR)}
    goals = {name: {"goal": goal, "got": ratios[name], "met": ratios[name] >= goal}
             for name, goal in (*GOALS.items(), ("dataproto_bytes", BYTES_GOAL)) if name in ratios}
    if "ours_over_floor" in ratios:
        got = ratios["ours_over_floor"]
        goals["ours_over_floor"] = {"goal": FLOOR_GOAL, "got": got, "met": got <= FLOOR_GOAL}
    shape = vars(load) | {"scenes": load.scenes, "producers": PRODUCERS, "consumers": CONSUMERS}
    peers = {name: figures.pop(name) for name in PEERS if name in figures}
    return {"load": shape, "figures": figures, "peers": peers, "ratios": ratios, "goals": goals}


def _table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{report['machine']}, load average {report['load']['before'][0]:.1f} before, "
             f"{report['load']['after'][0]:.1f} after"]
    for text, summary in report["workloads"].items():
        lines += ["", f"{text}, group {summary['load']['group']}",
                  f"{'':22}{'median s':>10}{'least':>9}{'most':>9}{'CPU s':>9}{'moved MB':>11}{'x ours':>9}"]
        rows = summary["figures"] | summary["peers"]
        base = rows.get("ours", {}).get("total_s")
        for name, row in rows.items():
            ratio = f"{row['total_s'] / base:9.2f}" if base else ""
            lines.append(f"{name:22}{row['total_s']:10.2f}{row['least_s']:9.2f}{row['most_s']:9.2f}{row['cpu_s']:9.2f}"
                         f"{row['bytes_moved'] / 1e6:11.1f}{ratio}")
        lines += [f"goal {name}: {goal['goal']:g}, got {goal['got']:.2f}: {'met' if goal['met'] else 'NOT met'}"
                  for name, goal in summary["goals"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
