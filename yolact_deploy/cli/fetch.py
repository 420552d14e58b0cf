"""Download the official weights of a configuration, verify them and print their path.

Files are kept in the cache of huggingface_hub; a second call needs no connection. Needs no torch. Weights whose digest
this version does not know must have the hub's, and the one that they had when they were first fetched here.

examples:
  yolact-deploy fetch yolact_base
  yolact-deploy export --weights yolact_base --fp16                   downloads as well, if need be
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="configuration, such as yolact_base")
    parser.add_argument("--cache-dir", metavar="DIR", help="folder for the weights")
    parser.add_argument("--sha256", metavar="HEX", help="expected checksum of the file (default: the known one)")
    parser.add_argument("--revision", metavar="REV", help="commit of the hub's repository (default: the known one)")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.artifact import sha256_file
    from yolact_deploy.console import print_json
    from yolact_deploy.samples.pretrained import OFFICIAL, commit_of, fetch_weights, first_digest

    known = args.name not in OFFICIAL or first_digest(args.name, args.revision)
    path = fetch_weights(args.name, cache_dir=args.cache_dir, sha256=args.sha256, revision=args.revision)
    digest = sha256_file(path)
    if not (args.sha256 or OFFICIAL[args.name].sha256):
        args.progress.note(
            f"note: this version has no digest for {args.name}. "
            + (
                "The file is that of the first download here"
                if known
                else "Only the hub vouches for the file; a later download that differs is refused"
            )
            + f". To pin it elsewhere, keep --sha256 {digest}"
            + (f" --revision {commit}" if (commit := commit_of(path)) else "")
        )
    if args.json:
        print_json({"name": args.name, "path": str(path), "bytes": path.stat().st_size, "sha256": digest})
    else:
        print(path)
    return 0
