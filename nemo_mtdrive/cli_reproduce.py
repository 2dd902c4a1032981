"""`nemo-mtdrive reproduce WHAT`: paths of what was made to stdout, progress and complaints to stderr."""

from __future__ import annotations

import argparse
from pathlib import Path

from nemo_mtdrive.commands import command, positive
from nemo_mtdrive.config import CONF_DIR

TABLES = ("table1", "table2", "table3", "turns", "mock", "size")
WHATS = ("model", *TABLES, "all", "list", "check", "repairs", "hacks", "page", "pack", "unpack")
DEFAULT_RECIPE = CONF_DIR / "reproduce" / "recipe.yaml"


def add_reproduce(commands: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = command(commands, "reproduce", "the paper's claims in small: a model, Tables 1 to 3, turns, mock data, size of "
                     "the RL set", _reproduce, "nemo-mtdrive reproduce table2 --seeds 1 2 3")
    parser.description = f"{parser.description}" + """.

  model    scenes, single-turn SFT, bootstrapped multi-turn data, SFT, mtGRPO: OUT/stages/model/out, for model.init_from
  table1   constant velocity, PDM-Closed, human, SFT, RL with kinematic and oracle feedback; curves of its RL
  table2   SFT: single-turn, two stages, one stage, with understanding data, with up to 6 turns
  table3   RL: sequence, per_turn, cross_turn, unbiased, from one SFT model; curves of each
  turns    the RL model with at most 1, 2, ... turns
  mock     SFT with mock conversations for more and more of the scenes
  size     RL on few, some and many scenes: training and held-out scores over steps
  all      all of these, each written as soon as it can be, then repairs, hacks, check and page
  list     every stage with its CPU minutes, expected or measured, and how far it is
  check    what must be true, each with its number; exit code 1 where something is not
  repairs  which faults the next answer repairs and which it makes, SFT and RL; episodes that were repaired, and were not
  hacks    episodes of the RL model with a high reward and an odd motion
  page     the tables and figures that are there into docs/results.md
  pack     what was measured (episodes, curves; no weights, no scenes) into MEASURED, to be published
  unpack   what was published into OUT: tables are read from it, and `all` makes only what is missing

Every stage is a command of this project (`list --commands` prints them) in OUT/stages/NAME. Killed, it goes on where it was
when the same command is given again."""
    parser.add_argument("what", choices=WHATS, metavar="WHAT", help=", ".join(WHATS))
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default: 1 2 3")
    parser.add_argument("--scale", type=_scale, default=1.0, metavar="S",
                        help="of all numbers of scenes and steps, e.g. 0.01 to see it run (default: 1)")
    parser.add_argument("--held-out", type=positive, metavar="N", help="held-out scenes (default: the recipe's, scaled)")
    parser.add_argument("--recipe", type=Path, default=DEFAULT_RECIPE, metavar="FILE", help="default: conf/reproduce/"
                        "recipe.yaml")
    parser.add_argument("--jobs", type=positive, default=0, metavar="N",
                        help="stages made at the same time, a core each (default: one a CPU)")
    parser.add_argument("--again", action="store_true", help="make stages anew that were made of other values")
    parser.add_argument("--commands", action="store_true", help="list: print the commands of each stage")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"), metavar="FILE",
                        help="page: what is written (default: %(default)s)")
    parser.add_argument("--measured", type=Path, default=Path("docs/results/measured"), metavar="MEASURED",
                        help="pack, unpack: folder of published measurements (default: %(default)s)")


def _reproduce(options: argparse.Namespace) -> int:
    from nemo_mtdrive.reproduce.command import Request, reproduce
    from nemo_mtdrive.reproduce.recipe import load_recipe, scaled

    recipe = scaled(load_recipe(options.recipe), options.scale, options.held_out)
    seeds = list(dict.fromkeys(options.seeds))
    return reproduce(Request(options.what, options.out, recipe, seeds, options.jobs, options.again, options.commands,
                             options.page, options.measured))


def _scale(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 100.0:
        raise argparse.ArgumentTypeError(f"got {value}, set it above 0")
    return value
