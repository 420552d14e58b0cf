"""Show what is inside an ONNX file, a TensorRT engine, a safetensors file or a checkpoint.

Without FILE, the model in the current folder: an exported one, else the only checkpoint, else the model that ships.
"""

from __future__ import annotations

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help=".onnx, .trt, .engine, .plan, .safetensors, .pth or .pt"
    )
    parser.add_argument("--layers", action="store_true", help="also list every node (ONNX) or tensor (weights)")


def run(args: argparse.Namespace) -> int:
    from yolact_deploy.cli.at_hand import model_at_hand
    from yolact_deploy.console import print_json
    from yolact_deploy.inspection import inspect_file
    from yolact_deploy.vocabulary import ENGINE_SUFFIXES, ONNX_SUFFIXES

    facts = inspect_file(args.file or model_at_hand(args, (*ENGINE_SUFFIXES, *ONNX_SUFFIXES)), layers=args.layers)
    if args.json:
        print_json(facts)
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
    if facts.get("layers"):
        columns = list(facts["layers"][0])
        print_table(columns, [[_shape(layer[c]) for c in columns] for layer in facts["layers"]], title="Layers")


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
        size = config["image_size"]
        rows.insert(1, ("network", f"{config['name']}: {config['backbone']}, {config['num_classes']} classes"))
        rows.insert(2, ("input size", f"{size} x {size}"))
    rows += [(label, str(facts[key])) for label, key in _PLAIN if facts.get(key)]
    if "opsets" in facts:
        rows.append(("opsets", ", ".join(f"{k} {v}" for k, v in facts["opsets"].items())))
    return rows


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
    return f"{form.get(target, target)}, {facts['method']} ranges from {facts['images']} images, SHA-256 {sha256}"


def _shape(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
