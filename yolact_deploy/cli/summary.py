"""Show the layers of a network with output shapes, parameters and multiply-adds, and the totals.

Without options, the network of the only checkpoint in the current folder or in weights/, else of the model that ships.
"""

from __future__ import annotations

import argparse

from yolact_deploy.cli.options.size_options import add_size_arguments, size_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    network = parser.add_mutually_exclusive_group()
    network.add_argument("--config", metavar="NAME", help="a configuration, such as yolact_base, or a JSON file")
    network.add_argument("--weights", metavar="FILE", help="a checkpoint; its configuration is inferred")
    add_size_arguments(parser)
    parser.add_argument("--depth", type=int, default=3, metavar="N", help="levels of nested modules (default 3)")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.artifact import read_config
    from yolact_deploy.cli.at_hand import checkpoint_at_hand
    from yolact_deploy.console import print_json, print_table, print_text
    from yolact_deploy.errors import InputError, import_optional

    if args.depth < 1:
        raise InputError(f"--depth: expected 1 or more, got {args.depth}")
    # Before the slow import below, so that a wrong name fails at once.
    network = read_config(args.config).with_input(**size_options(args)) if args.config else None
    import_optional("torch", "train", "the layer table")
    from yolact_deploy.model.checkpoint import load_model
    from yolact_deploy.model.layer_table import COLUMNS, layer_table, summary_dict

    described = network or load_model(args.weights or checkpoint_at_hand(args), **size_options(args))
    if args.json:
        print_json(summary_dict(described))
    else:
        table = layer_table(described, depth=args.depth)
        print_table(COLUMNS, table.rows, title=table.title)
        for note in table.notes:
            print_text(note)
    return 0
