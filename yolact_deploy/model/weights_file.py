"""From a weights file to the tensors of one network: our safetensors files, and what training scripts save.

Nothing here runs code from a file: pickles are read with ``weights_only=True``, and one that needs more is refused.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact_deploy.artifact import METADATA_KEY, Metadata
from yolact_deploy.config import YolactConfig
from yolact_deploy.errors import ArtifactError, CheckpointError, import_optional
from yolact_deploy.model.origins import NETWORK_NAMES, ORIGINS, find_origin
from yolact_deploy.model.origins.origin import Origin, StateDict
from yolact_deploy.untrusted import require_packed_size

_log = logging.getLogger(__name__)

_HEAD = "prediction_layers.0"

# Names that the original's loader drops, and the last stage of MobileNetV2, which YolactEdge stores but never uses.
_SUPERFLUOUS = re.compile(r"backbone\.layer(?!s)|fpn\.downsample_layers\.([2-9]|\d\d)|backbone\.layers\.8\.[01]\.")
#: what a tensor of every YOLACT begins with, after the names of the modules that wrap the network
_NETWORK = re.compile(rf"(.*?){NETWORK_NAMES}")
#: wrappers around backbones, which have no such tensor
_WRAPPED = re.compile(r"((module|_orig_mod|model|net|network)\.)+")
#: moving averages of a network, by the names that training scripts give them
_AVERAGE = re.compile(r"ema|swa|averag|teacher|shadow", re.IGNORECASE)
#: counts the averaged states in a checkpoint of torch.optim.swa_utils
_AVERAGED = "n_averaged"
#: wrappers within each other
_MOST_WRAPPERS = 4
#: bytes of a tensor that may be a view with repeated values
_MOST_REPEATED = 1 << 24
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Weights:
    """The content of a weights file, with the names of the original's tensors.

    Attributes:
        state: the tensors
        config: of the file itself, if it has one
        origin: the implementation that the tensors are from; None for the original and for ours
        adapt: from the configuration that ``state`` suggests to that of the network, with a text of what was assumed
    """

    state: StateDict
    config: YolactConfig | None = None
    origin: Origin | None = None
    adapt: Callable[[YolactConfig], tuple[YolactConfig, str]] = lambda config: (config, "")


def read_state_dict(path: str | Path) -> tuple[StateDict, YolactConfig | None]:
    """Tensors of a weights file, and its configuration if the file has one: see :func:`read_weights`."""
    weights = read_weights(path)
    return weights.state, weights.config


def read_weights(path: str | Path) -> Weights:
    """Tensors of a weights file on the CPU, with the names of the original, and what is known of their network.

    Reads safetensors, and ``.pth`` files with a state dict, plain or below other entries (``state_dict``, ``model`` and
    the like), with or without the names of wrapping modules (``module.``, ``_orig_mod.`` and the like) before those of
    the tensors. Of several networks, the first that is no moving average is taken, with a warning. Superfluous entries
    that the original's loader drops are dropped. Those of other implementations (`origins`) are renamed and reordered.

    Raises:
        CheckpointError: no such file, not a weights file, one that is damaged or would run code, or values that are
            not finite floating-point numbers.
    """
    path = Path(path)
    start = _first_bytes(path)
    # A safetensors file starts with a length of 8 bytes and a JSON header.
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        content, config = _read_safetensors(path)
    else:
        content, config = _read_pickle(path), None
    found = _network(content, path)
    _check_stored(found, path)
    weights = _of_origin(found, content, path) if config is None else None
    if weights is None:
        weights = Weights(found, config)
    weights = replace(weights, state=_clean(weights.state))
    _check_values(weights.state, path)
    return weights


def _of_origin(state: StateDict, content: Any, path: Path) -> Weights | None:
    """The network of another implementation; None if it is not of one."""
    unused = [(start, of) for origin in ORIGINS for start, of in origin.unused]
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(start for start, _ in unused))}
    origin = find_origin(kept) or (find_origin(state) if len(kept) < len(state) else None)
    if origin is None and not (len(kept) < len(state) and f"{_HEAD}.conf_layer.weight" in kept):
        return None
    if len(kept) < len(state):
        parts = sorted({of for start, of in unused for key in state if key.startswith(start)})
        _log.warning("%s: left out %d tensors of %s", path, len(state) - len(kept), ", ".join(parts))
    if origin is None:  # the original's names, with parts of YolactEdge
        return Weights(kept)
    meta = content.get("meta") if isinstance(content, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    configure = origin.configure
    try:
        converted = origin.convert(kept)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Weights(converted, None, origin, lambda config: configure(config, kept, meta))


# -- files ----------------------------------------------------------------------------------------------------------


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a weights file: give a .pth or .safetensors file in it")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except FileNotFoundError as error:
        raise CheckpointError(f"no such weights file: {path}. Check the path and the current folder") from error
    except OSError as error:
        raise CheckpointError(
            f"cannot read weights file {path}: {error.strerror or error}. Check its permissions"
        ) from error
    if not start:
        raise CheckpointError(f"weights file {path} is empty: copy or download it again")
    return start


def _read_safetensors(path: Path) -> tuple[StateDict, YolactConfig | None]:
    safetensors = import_optional("safetensors", extra="train", purpose="reading .safetensors weights")
    try:
        with safetensors.safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            text = (file.metadata() or {}).get(METADATA_KEY)
    except (safetensors.SafetensorError, OSError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({_short(error)}): copy or download it again"
        ) from error
    if text is None:
        return state, None
    try:
        return state, Metadata.from_json(text, str(path)).config
    except ArtifactError as error:
        raise CheckpointError(f"{error}, or save the weights again") from error


def _read_pickle(path: Path) -> Any:
    require_packed_size(path, "weights file", CheckpointError)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # torch warns about TorchScript archives before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(_why_unreadable(path, error)) from error


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return f"{path} is a TorchScript archive, which contains code: give the state dict it was made from"
    # torch quotes the name of the function or class that the pickle refers to
    refused = re.search(r"(?:GLOBAL|Unsupported global:|class|function) ([\w.]+\.[\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and refused and refused[1].startswith(("mmengine.", "mmcv.")):
        return (
            f"{path} is refused: besides tensors it holds {refused[1]} of a training with mmdetection, and reading "
            f"that could run code. If you trust it, two lines of Python make a clean file: checkpoint = "
            f"torch.load({str(path)!r}, map_location='cpu', weights_only=False) and torch.save({{key: checkpoint[key] "
            "for key in ('meta', 'state_dict')}, 'clean.pth')"
        )
    if isinstance(error, pickle.UnpicklingError) and refused:
        return (
            f"{path} is refused: it holds more than tensors ({refused[1]}), and reading that could run code. "
            "Save it again with torch.save(model.state_dict(), path) if you trust it"
        )
    # Torch's message about such files concerns its own options; --debug shows it as the cause.
    return f"{path} is not a weights file, or it is damaged: copy or download it again"


def _short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:120]


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with {', '.join(map(str, list(content)[:4])) or 'nothing'}"
    return f"a {type(content).__name__}"


# -- the network in a file ------------------------------------------------------------------------------------------


def _network(content: Any, path: Path) -> StateDict:
    """The tensors of the one network in a file, without what is before their names."""
    dicts = list(_state_dicts(content, set()))
    if not dicts:
        raise CheckpointError(
            f"{path} holds {_describe(content)}, expected a state dict of tensors: "
            "save it with torch.save(model.state_dict(), path)"
        )
    networks = {
        name: (state, outside) for place, tensors in dicts for name, state, outside in _networks(place, tensors)
    }
    if not networks:  # a backbone, or the network of another project
        tensors = max((tensors for _, tensors in dicts), key=len)
        prefixes = {match[0] if (match := _WRAPPED.match(key)) else "" for key in tensors}
        return {key.removeprefix(min(prefixes, key=len)): value for key, value in tensors.items()}
    name = min(networks, key=lambda name: _AVERAGE.search(name) is not None)
    others = ", ".join(repr(other) for other in networks if other != name)
    if others:
        _log.warning("%s has several networks: took %r, not %s. Save another one alone to use it", path, name, others)
    state, left = networks[name]
    if left:
        some = ", ".join(left[:3]) + (" ..." if len(left) > 3 else "")
        _log.warning("%s: left out %d tensors outside of the network %r: %s", path, len(left), name, some)
    return state


def _state_dicts(content: Any, seen: set[int], place: str = "") -> Iterator[tuple[str, StateDict]]:
    """Every dictionary of tensors in a file with its place, wherever it is: ``model.`` for that below "model"."""
    if not isinstance(content, Mapping) or id(content) in seen:
        return
    seen.add(id(content))
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor) and key != _AVERAGED}
    if tensors:
        yield place, tensors
    if len(place.split(".")) <= _MOST_WRAPPERS:
        for key, value in content.items():
            yield from _state_dicts(value, seen, f"{place}{str(key).replace('.', '_')}.")


def _networks(place: str, tensors: StateDict) -> Iterator[tuple[str, StateDict, list[str]]]:
    """The networks in a dictionary of tensors, by the modules that wrap them, and the names of tensors outside."""
    prefixes = dict.fromkeys(match[1] for key in tensors if (match := _NETWORK.match(key)))
    owners = {key: max((p for p in prefixes if key.startswith(p)), key=len, default=None) for key in tensors}
    outside = [key for key, owner in owners.items() if owner is None]
    for prefix in prefixes:
        state = {key.removeprefix(prefix): tensors[key] for key, owner in owners.items() if owner == prefix}
        yield (place + prefix).rstrip(".") or "the one at the top", state, outside


def _clean(state: StateDict) -> StateDict:
    return {key: value for key, value in state.items() if not _SUPERFLUOUS.match(key)}


def _check_stored(state: StateDict, path: Path) -> None:
    """Refuse tensors that repeat a few stored values up to any size, which computing with them would fill in."""
    for key, value in state.items():
        if value.layout != torch.strided or value.is_meta:
            continue
        stored, needed = value.untyped_storage().nbytes(), value.numel() * value.element_size()
        if needed > max(stored, _MOST_REPEATED):
            raise CheckpointError(
                f"{path}: {key} of shape {list(value.shape)} has {needed} bytes, of which {stored} are stored and "
                "repeated: save the weights of the network as it was trained"
            )


def _check_values(state: StateDict, path: Path) -> None:
    """Weights are finite floating-point numbers; batch counters are integers."""
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            continue
        if value.dtype not in _FLOATS or value.layout != torch.strided or value.is_meta:
            kind = "without values" if value.is_meta else str(value.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}: {key} is {kind}, expected dense floating-point values (float32, float16, bfloat16 or "
                "float64): save the weights of the network as it was trained, before quantization"
            )
        if not value.float().isfinite().all():
            raise CheckpointError(
                f"{path}: {key} has values that are not finite: the file is damaged or its training diverged. "
                "Give an earlier checkpoint"
            )
