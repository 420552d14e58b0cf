"""Download the official weights of a configuration, verify them and print their path.

Files are kept in the cache of huggingface_hub; a second call needs no connection.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="configuration, such as yolact_base")
    parser.add_argument("--cache-dir", metavar="DIR", help="folder for the weights")
    parser.add_argument("--sha256", metavar="HEX", help="expected checksum of the file")


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
