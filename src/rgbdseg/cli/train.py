"""``rgbdseg train``: from a recipe and a dataset to a run folder."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from rgbdseg.cli.common import CONSOLE, Parser, say
from rgbdseg.cli.config_args import config_parser, parse_train_config, read_config_file
from rgbdseg.config.train import TrainConfig
from rgbdseg.errors import UsageError
from rgbdseg.recipes import RECIPES, get_recipe

EPILOG = f"""
RECIPE: {", ".join(sorted(RECIPES))}, a YAML config,
or package.module:function of any function that returns a TrainConfig; with --resume it may be left out.
Every other option is a field of the configuration, e.g. --loader.batch_size 8 or --hardware.precision bf16-mixed;
'rgbdseg recipes RECIPE' prints all of them with their values, 'rgbdseg train RECIPE --help' explains them.
"""


def run(arguments: list[str]) -> int:
    """Run the command."""
    parser = Parser("train", "Train a recipe, or continue a run.")
    parser.add_argument("--data", metavar="DATASET", help="folder of the prepared dataset")
    parser.add_argument("--out", metavar="RUN", help="run folder to create; default runs/RECIPE")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    parser.usage = "rgbdseg train [RECIPE] [--data DATASET] [--out RUN] [--resume] [--GROUP.FIELD VALUE ...]"
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if arguments[1:2] in (["-h"], ["--help"]) and arguments[0] in RECIPES:
        config_parser(f"train {arguments[0]}", get_recipe(arguments[0])).print_help()
        return 0
    # Not a positional of the parser: it would take the value of an option that only the config knows.
    recipe = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    if ":" in recipe:
        sys.path.insert(0, os.getcwd())  # as for python -m: a module beside the user's work can be named
    known, rest = parser.parse_known_args(arguments, argparse.Namespace(recipe=recipe))
    config = _config(known, rest)
    out = Path(known.out) if known.out else Path("runs") / (config.recipe.rpartition(":")[2] or Path(known.recipe).stem)
    from rgbdseg.engine.run_folder import RunFolder, check_resumable
    from rgbdseg.engine.stop import Interrupted
    from rgbdseg.engine.train import is_main_process, quiet_lightning, train

    quiet_lightning()
    if known.resume:
        run_folder = RunFolder(out)
        run_folder.require_run()
        check_resumable(run_folder.stored_config(), config)
    try:
        result = train(config, out, resume=known.resume, console=CONSOLE)
    except Interrupted:
        if is_main_process():
            say(f"stopped; the state is saved. Continue with: rgbdseg train --out {out} --resume")
        return 130
    if is_main_process():
        say(f"finished: {result.last}")
    return 0


def _config(known: argparse.Namespace, rest: list[str]) -> TrainConfig:
    defaults = _defaults(known)
    config = parse_train_config(f"train {known.recipe or ''}".strip(), defaults, rest)
    if known.data:
        config = dataclasses.replace(config, data=known.data)
    if not config.data:
        raise UsageError("no dataset given; add --data DATASET (see rgbdseg train --help)")
    # Absolute, so that the stored config can be run again from anywhere; names of the zoo and of the hub are no paths.
    model, source = config.model, config.model.start_from
    if source is not None and not known.resume and Path(source).exists():
        model = dataclasses.replace(model, start_from=str(Path(source).resolve()))
    return dataclasses.replace(config, data=str(Path(config.data).resolve()), model=model)


def _defaults(known: argparse.Namespace) -> TrainConfig | dict[str, object]:
    if known.resume:
        out = known.out or (f"runs/{known.recipe.rpartition(':')[2]}" if known.recipe else None)
        if out is None:
            raise UsageError("which run? give --out RUN with --resume")
        from rgbdseg.engine.run_folder import RunFolder

        run_folder = RunFolder(Path(out))
        run_folder.require_run()
        stored = run_folder.stored_config()
        if known.recipe and stored.get("recipe") != known.recipe:
            get_recipe(known.recipe)
            raise UsageError(f"the run at {out} was started with '{stored.get('recipe')}', not '{known.recipe}'")
        return stored
    if not known.recipe:
        raise UsageError(f"no recipe given; expected one of: {', '.join(sorted(RECIPES))}, or a YAML config")
    if known.recipe.endswith((".yaml", ".yml")):
        return read_config_file(known.recipe)
    return get_recipe(known.recipe)
