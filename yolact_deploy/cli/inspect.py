"""Show what is inside an ONNX file, a TensorRT engine, a checkpoint or a file of ncnn or LiteRT.

Without FILE, the model in the current folder: an exported one, else the only checkpoint, else the model that ships.
"""

from __future__ import annotations

import argparse
from typing import Any

from yolact_deploy.cli.options.parsing import whole
from yolact_deploy.console import print_text
from yolact_deploy.vocabulary import MODEL_SUFFIXES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help=f"{', '.join(MODEL_SUFFIXES[:-1])} or {MODEL_SUFFIXES[-1]}"
    )
    parser.add_argument("--layers", action="store_true", help="also list every node (ONNX) or tensor (weights)")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="run an engine, and list its layers with precisions, tactics and times, and the stages of a frame. Build "
        "the engine with --layer-details for more than names and times",
    )
    parser.add_argument(
        "--runs", type=whole(), default=30, metavar="N", help="with --profile, runs to average (default 30)"
    )
    parser.add_argument("--device", default="cuda", metavar="cuda:N", help="with --profile, the GPU (default cuda)")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.cli.at_hand import model_at_hand
    from yolact_deploy.cli.schemas import INSPECT
    from yolact_deploy.console import print_json
    from yolact_deploy.inspection import inspect_file
    from yolact_deploy.vocabulary import ENGINE_SUFFIXES, ONNX_SUFFIXES

    path = args.file or model_at_hand(args, ENGINE_SUFFIXES if args.profile else (*ENGINE_SUFFIXES, *ONNX_SUFFIXES))
    facts = inspect_file(path, layers=args.layers)
    if args.profile:
        from yolact_deploy.inspection import profile_file

        facts["profile"] = profile_file(path, device=args.device, runs=args.runs)
    if args.json:
        print_json({"schema": INSPECT, **facts})
    else:
        _print(facts)
    return 0


def _print(facts: dict[str, Any]) -> None:
    from yolact_deploy.console import print_table

    print_table(["", facts["path"]], _overview(facts))
    if "inputs" in facts:
        values = [
            (kind, value["name"], value["dtype"], _shape(value["shape"]))
            for kind in ("inputs", "outputs")
            for value in facts[kind]
        ]
        print_table(["", "name", "dtype", "shape"], values, title="Inputs and outputs")
    if facts.get("parameters"):
        dtypes = [(dtype, f"{n['values']:,}", f"{n['bytes']:,}") for dtype, n in facts["parameters"].items()]
        print_table(["dtype", "values", "bytes"], dtypes, title="Parameters")
    if "nodes" in facts:
        print_table(["type", "nodes"], facts["nodes"].items(), title="Nodes")
    if facts.get("functions"):
        functions = [(function["name"], function["nodes"]) for function in facts["functions"]]
        print_table(["function", "nodes"], functions, title="Functions")
    if facts.get("profile"):
        _print_profile(facts["profile"])
    if facts.get("layers"):
        columns = list(facts["layers"][0])
        print_table(columns, [[_shape(layer[c]) for c in columns] for layer in facts["layers"]], title="Layers")


def _print_profile(profile: dict[str, Any]) -> None:
    from yolact_deploy.console import print_table

    total = profile["total_ms"]
    rows = [
        (
            layer["name"],
            layer["kind"],
            ", ".join(layer["inputs"]),
            ", ".join(layer["outputs"]),
            layer["tactic"],
            "-" if layer["mean_ms"] is None else f"{layer['mean_ms']:.4f}",
            "-" if layer["mean_ms"] is None or not total else f"{layer['mean_ms'] / total:.1%}",
        )
        for layer in profile["layers"]
    ]
    title = f"Layers, mean of {profile['runs']} runs of {profile['batch']} image(s): {total:.3f} ms in all"
    print_table(["layer", "type", "reads", "writes", "tactic", "ms", "share"], rows, title=title)
    if not profile["detailed"]:
        print_text("this engine knows only the names of its layers: build it with --layer-details for the rest")
    stages = [(stage, f"{mean:.4f}") for stage, mean in profile["stages_mean_ms"].items()]
    print_table(["stage", "ms"], stages, title="Stages of a frame of 640 x 480")


def _overview(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("kind", facts["kind"]), ("size", f"{facts['bytes']:,} bytes"), ("SHA-256", facts["sha256"])]
    metadata = facts["metadata"]
    config = facts.get("inferred_config")
    if metadata:
        config = metadata["config"]
        low, usual, high = metadata["batch"]
        rows += [
            ("precision", metadata["precision"]),
            *([("quantized", _quantization(metadata["quantization"]))] if metadata["quantization"] else []),
            *([("kept in FP32", ", ".join(_kept(metadata)))] if metadata["keep_fp32"] else []),
            ("tail", metadata["tail"]),
            ("batch", str(high) if low == high else f"{low} to {high}, optimized for {usual}"),
            ("input", metadata["input_dtype"]),
            ("weights SHA-256", metadata["weights_sha256"] or "not recorded"),
            ("made with", ", ".join(f"{k} {v}" for k, v in metadata["versions"].items()) or "not recorded"),
        ]
    elif "metadata_error" in facts:
        rows.append(("metadata", facts["metadata_error"]))
    elif facts["kind"] in ("ONNX", "safetensors"):
        rows.append(("metadata", "none: not made by yolact-deploy"))
    if config:
        rows.insert(1, ("network", f"{config['name']}: {config['backbone']}, {_classes(config['num_classes'])}"))
        rows.insert(2, ("input size", _input_size(config, (facts.get("metadata") or {}).get("sizes"))))
    rows += [(label, str(facts[key])) for label, key in _PLAIN if facts.get(key)]
    if "opsets" in facts:
        rows.append(("opsets", ", ".join(f"{k} {v}" for k, v in facts["opsets"].items())))
    return rows


def _classes(number: int) -> str:
    return f"{number} class{'' if number == 1 else 'es'}"


def _input_size(config: dict[str, Any], sizes: dict[str, Any] | None) -> str:
    """Height, width, the range of both, and how pictures of another shape get there unless they are stretched."""
    size, fit = config["image_size"], config.get("fit")
    height, width = size if isinstance(size, list) else (size, size)
    others = "" if sizes is None else " ({} x {} to {} x {})".format(*sizes["low"], *sizes["high"])
    return f"{height} x {width}{others}" + (f", {fit}" if fit else "")


def _kept(metadata: dict[str, Any]) -> list[str]:
    """The layers kept in FP32, with the reasons for those that the export chose."""
    reasons = metadata["keep_reasons"]
    return [f"{layer} ({reasons[layer]})" if layer in reasons else layer for layer in metadata["keep_fp32"]]


_PLAIN = (
    ("built by version", "builder_version"),
    ("note", "note"),
    ("configuration", "config_error"),
    ("tensors", "tensors"),
    ("producer", "producer"),
    ("IR version", "ir_version"),
)


def _quantization(facts: dict[str, Any]) -> str:
    """Form, ranges and images of an INT8 file in one line."""
    form = {"symmetric": "symmetric (TensorRT, OpenVINO)", "onnxruntime": "unsigned (ONNX Runtime)"}
    target, sha256 = facts["target"], facts["images_sha256"]
    rest = f", the rest in {facts['rest'].upper()}" if facts.get("rest") else ""
    return f"{form.get(target, target)}, {facts['method']} ranges from {facts['images']} images, SHA-256 {sha256}{rest}"


def _shape(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
