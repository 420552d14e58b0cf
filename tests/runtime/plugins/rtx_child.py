"""Builds an engine with our plugins in Python with TensorRT for RTX, in a separate process.

    python rtx_child.py MODEL.onnx MODE ENGINE [broken]     # prints the network as JSON in the last line

With "broken", the plugins fail while the engine is built.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tensorrt_stubs.bindings import use_private_libraries


def main(source: str, mode: str, target: str, broken: str = "") -> None:
    with tempfile.TemporaryDirectory() as name:
        use_private_libraries(Path(name))
        import onnx

        from yolact_deploy.runtime import plugins, tensorrt_api

        trt = tensorrt_api.import_tensorrt("rtx")
        assert Path(sys.modules["tensorrt_rtx_libs"].__file__ or "").is_relative_to(name)
        choice = plugins.prepare(onnx.load(source), trt, "rtx", mode)
        if broken:
            break_plugins()
        report = build(trt, choice.model, target)
        print(json.dumps({"kind": choice.kind, "names": choice.names, "reason": choice.reason, **report}), flush=True)
    os._exit(0)


def break_plugins() -> None:
    from yolact_deploy.runtime.plugins import v3

    def fail(*arguments: Any) -> Any:
        raise RuntimeError("broken on purpose")

    vars(v3)["output_dtypes"] = fail


def build(trt: Any, model: Any, target: str) -> dict[str, Any]:
    from yolact_deploy.runtime import tensorrt_api

    with tensorrt_api.complaints("rtx") as heard:
        logger = tensorrt_api.logger("rtx")
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse(model.SerializeToString())
        if not parsed:
            return {"parsed": False, "errors": [parser.get_error(i).desc() for i in range(parser.num_errors)]}
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            sizes = tuple(tensor.shape)[1:]
            if tensor.shape[0] == -1:
                profile.set_shape(tensor.name, *((batch, *sizes) for batch in (1, 2, 4)))
        if network.get_input(0).shape[0] == -1:
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            Path(target).write_bytes(bytes(plan))
        outputs = [network.get_output(index) for index in range(network.num_outputs)]
        shapes = {each.name: [each.dtype.name, list(each.shape)] for each in outputs}
        return {"parsed": True, "built": plan is not None, "outputs": shapes, "errors": heard}


if __name__ == "__main__":
    main(*sys.argv[1:])
