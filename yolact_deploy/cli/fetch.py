"""Download the official weights of a configuration, or any at an address, verify them and print their path.

Official weights are kept in the cache of huggingface_hub, others in that of this package; a second call needs no
connection. Needs no torch. Weights whose digest this version does not know must have the hub's, or the one at the end
of their name, and the one that they had when they were first fetched here.

examples:
  yolact-deploy fetch yolact_base
  yolact-deploy fetch https://HOST/yolact_r50-0123abcd.pth            of mmdetection, YolactEdge or Yolact_minimal
  yolact-deploy export --weights yolact_base --fp16                   downloads as well, if need be
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="configuration, such as yolact_base, or address of a file")
    parser.add_argument("--cache-dir", metavar="DIR", help="folder for the weights")
    parser.add_argument("--sha256", metavar="HEX", help="expected checksum of the file (default: the known one)")
    parser.add_argument("--revision", metavar="REV", help="commit of the hub's repository (default: the known one)")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.artifact import sha256_file
    from yolact_deploy.console import print_json
    from yolact_deploy.samples.pretrained import OFFICIAL, commit_of, fetch_weights, first_digest
    from yolact_deploy.samples.weights_address import is_address

    if is_address(args.name):
        return _fetch_address(args)
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


def _fetch_address(args: argparse.Namespace) -> int:
    from yolact_deploy.artifact import sha256_file
    from yolact_deploy.console import print_json, print_next
    from yolact_deploy.errors import InputError
    from yolact_deploy.samples.weights_address import download_weights

    if args.revision:
        raise InputError("--revision is of the hub's repositories: leave it out for an address")
    path = download_weights(args.name, args.cache_dir, args.sha256, args.progress)
    if args.json:
        digest = sha256_file(path)
        print_json({"name": args.name, "path": str(path), "bytes": path.stat().st_size, "sha256": digest})
    else:
        print(path)
        if not args.quiet:
            print_next(["yolact-deploy", "inspect", str(path)])
    return 0
