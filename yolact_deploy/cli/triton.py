"""Write a model repository for NVIDIA's Triton Inference Server.

REPOSITORY gets two models: NAME takes encoded pictures and returns detections, NAME_network is the network alone. NAME
is a step in Triton's Python backend, whose interpreter needs this package. The network runs in Triton's own backend for
ONNX Runtime, OpenVINO or TensorRT. bench, eval and compare take http://HOST:PORT/NAME as a model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy.cli.options.parsing import whole
from yolact_deploy.console import print_command, print_text

if TYPE_CHECKING:
    from yolact_deploy.serving.triton_config import TritonSettings
    from yolact_deploy.serving.triton_repository import Repository

_BACKENDS = ("onnxruntime", "openvino", "tensorrt", "python")
_EXAMPLES = """examples:
  yolact-deploy triton yolact.onnx -o models
  yolact-deploy triton yolact.trt -o models --name street --instances 2
  yolact-deploy triton yolact.onnx -o models --backend openvino --device cpu"""

#: the type of an option that counts what Triton has
_count = whole(1, 1_000_000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="ONNX file, or engine of TensorRT")
    parser.add_argument("-o", "--output", metavar="REPOSITORY", required=True, help="folder of the models")
    parser.add_argument("--name", metavar="NAME", help="name of the model (default: that of the file)")
    parser.add_argument(
        "--backend", choices=_BACKENDS, help="of the network in Triton (default: onnxruntime, tensorrt for an engine)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), help="of the network (default: gpu for an engine, else cpu)"
    )
    parser.add_argument(
        "--instances",
        type=_count,
        metavar="N",
        help="networks at work at once (default: cores here, 1 on a GPU)",
    )
    parser.add_argument(
        "--steps", type=_count, metavar="N", help="copies of the step for pictures (default: cores here)"
    )
    parser.add_argument(
        "--max-delay-us",
        type=int,
        default=2000,
        metavar="US",
        help="how long a request waits for its batch (default 2000)",
    )
    parser.add_argument("--queue", type=_count, default=64, metavar="N", help="requests that may wait (default 64)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.15, metavar="X", help="drop detections below (default 0.15)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace models of the same names")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.errors import InputError
    from yolact_deploy.loading import ModelSpec
    from yolact_deploy.machine.cpu_state import usable_cores
    from yolact_deploy.serving.triton_repository import write_repository

    spec = ModelSpec.parse(args.model)
    if spec.backend or spec.url:
        raise InputError(f"{args.model}: name a file, and choose Triton's backend with --backend")
    spec.check_file()
    repository = write_repository(
        spec.path,
        Path(args.output),
        args.name or spec.path.stem,
        _settings(args, spec.path),
        steps=args.steps or usable_cores(),
        overwrite=args.overwrite,
    )
    _print(args, repository)
    return 0


def _settings(args: argparse.Namespace, path: Path) -> TritonSettings:
    from yolact_deploy.errors import InputError
    from yolact_deploy.machine.cpu_state import usable_cores
    from yolact_deploy.serving.triton_config import TritonSettings
    from yolact_deploy.serving.triton_repository import choose_backend

    if not 0 <= args.score_threshold < 1:
        raise InputError(f"--score-threshold: expected 0 <= value < 1, got {args.score_threshold}")
    if not 0 <= args.max_delay_us <= 10_000_000:
        raise InputError(f"--max-delay-us: expected 0 to 10000000, got {args.max_delay_us}")
    backend = choose_backend(path, args.backend)
    gpu = args.device == "gpu" if args.device else backend == "tensorrt"
    if (backend, gpu) in (("tensorrt", False), ("openvino", True)):
        raise InputError(f"--device {args.device}: Triton's backend {backend} does not run there")
    return TritonSettings(
        backend=backend,
        gpu=gpu,
        instances=args.instances or (1 if gpu else usable_cores()),
        max_delay_us=args.max_delay_us,
        queue=args.queue,
        score_threshold=args.score_threshold,
    )


def _print(args: argparse.Namespace, repository: Repository) -> None:
    from yolact_deploy.console import print_json, print_table
    from yolact_deploy.serving.triton_repository import start_commands

    commands, folder = start_commands(repository), repository.folder
    if args.json:
        files = [str(folder / file) for file in repository.files]
        backend = repository.settings.backend
        print_json({"models": list(repository.models), "backend": backend, "files": files, "start": commands})
    elif not args.quiet:
        rows = [(str(file), f"{(folder / file).stat().st_size:,}") for file in repository.files]
        print_table([f"in {folder}", "bytes"], rows)
        print_text("start, in an image of Triton with yolact-deploy installed:")
        print_command("  " + commands[0])
        print_text("or, with Triton on this machine:")
        print_command("  " + commands[1])
