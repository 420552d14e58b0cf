"""Download the official weights of a configuration, check them, and print where they are.

Files are kept in the cache of huggingface_hub, so that a second call needs no connection.
"""

from __future__ import annotations

import argparse

HELP = "download the official weights of a configuration"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="configuration, such as yolact_base")
    parser.add_argument("--cache-dir", metavar="DIR", help="folder to keep the weights in")
    parser.add_argument("--sha256", metavar="HEX", help="checksum that the file must have")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.console import print_json
    from yolact_deploy.errors import import_optional

    import_optional("torch", "train", "reading weights")
    from yolact_deploy.model.pretrained import fetch_weights

    path = fetch_weights(args.name, cache_dir=args.cache_dir, sha256=args.sha256)
    if args.json:
        print_json({"name": args.name, "path": str(path), "bytes": path.stat().st_size})
    else:
        print(path)
    return 0
