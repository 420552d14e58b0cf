"""What a command uses where the user names no weights, no model or no pictures, and the line that says so."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from yolact_deploy import samples
from yolact_deploy.artifact import Metadata, has_metadata_beside, read_metadata_beside, sha256_file
from yolact_deploy.errors import InputError, import_optional
from yolact_deploy.machine.nvidia import has_gpu
from yolact_deploy.runtime.remote_names import remote_url
from yolact_deploy.vocabulary import CHECKPOINT_SUFFIXES, ENGINE_SUFFIXES, ONNX_SUFFIXES

if TYPE_CHECKING:
    from yolact_deploy.config import YolactConfig
    from yolact_deploy.datasets.image_sets import CocoImages

#: name of exported files if the user names neither weights nor output
STEM = "yolact"
#: folders of checkpoints
FOLDERS = (Path(), Path("weights"))
#: initial weights of the original's training, which lie beside checkpoints in its weights folder
_BACKBONES = ("resnet101_reducedfc.pth", "resnet50-19c8e357.pth", "darknet53.pth")
#: pictures to generate, and to take of a dataset that was not named
PICTURES = 50
#: pictures for an example
EXAMPLES = 6
DATASET_VARIABLE = "YOLACT_COCO"


def checkpoint_at_hand(args: argparse.Namespace) -> Path:
    """The only checkpoint in the current folder or in weights/, else the model that ships.

    Raises:
        InputError: several.
    """
    there = _files(FOLDERS, CHECKPOINT_SUFFIXES)
    if len(there) > 1:
        raise InputError(f"several checkpoints here ({_listed(there)}): name one, such as --weights {there[0]}")
    if there:
        args.progress.note(f"note: no weights named: taking {there[0]}, the only checkpoint here")
        return there[0]
    args.progress.note(
        "note: no weights named and no checkpoint here: taking the model that ships, which finds cell nuclei"
    )
    return samples.NUCLEI_MODEL


def exported_at_hand(args: argparse.Namespace, suffixes: Sequence[str] | None = None) -> Path | None:
    """The exported model in the current folder; of an engine and its ONNX file the engine.

    Args:
        suffixes: of the files to take (default: of those that run here, engines only with a GPU)

    Raises:
        InputError: several models.
    """
    runnable = (*ENGINE_SUFFIXES, *ONNX_SUFFIXES) if has_gpu() else ONNX_SUFFIXES
    exported = _files(FOLDERS[:1], suffixes or runnable)
    if len({path.stem for path in exported}) > 1:
        raise InputError(f"several models here ({_listed(exported)}): name one")
    exported.sort(key=lambda path: path.suffix.lower() in ONNX_SUFFIXES)
    for path in exported:
        args.progress.note(f"note: no model named: taking {path}")
        return path
    return None


def model_at_hand(args: argparse.Namespace, suffixes: Sequence[str] | None = None) -> Path:
    """The exported model in the current folder, else the checkpoint at hand; see :func:`exported_at_hand`."""
    return exported_at_hand(args, suffixes) or checkpoint_at_hand(args)


def onnx_at_hand(args: argparse.Namespace) -> Path:
    """The ONNX file in the current folder; raises :class:`InputError` if there is none, or several."""
    path = exported_at_hand(args, ONNX_SUFFIXES)
    if path is None:
        raise InputError("no ONNX file here: name one, or write one with 'yolact-deploy export'")
    return path


def made_from(metadata: Metadata, engine: Path) -> Path | None:
    """The checkpoint of an exported file by its SHA-256: beside the file, at hand, or one that ships; else None."""
    folders = tuple(dict.fromkeys((engine.parent, engine.parent / "weights", *FOLDERS)))
    for path in (*samples.MODELS, *_files(folders, CHECKPOINT_SUFFIXES)):
        if metadata.weights_sha256 and sha256_file(path) == metadata.weights_sha256:
            return path
    return None


def read_metadata(path: Path) -> Metadata:
    """The metadata of an exported file; raises :class:`ArtifactError` if it has none."""
    from yolact_deploy.engine_file import read_engine_metadata
    from yolact_deploy.graph.onnx_graph import onnx_metadata, read_onnx

    if path.suffix.lower() in ENGINE_SUFFIXES:
        return read_engine_metadata(path)
    if has_metadata_beside(path):
        return read_metadata_beside(path)
    return onnx_metadata(read_onnx(path), path)


def config_of(path: Path, config: str | None = None) -> YolactConfig:
    """The configuration of a model file, or of one on a server; ``config`` is the one named for a checkpoint."""
    if remote_url(path.as_posix()) is not None:
        from yolact_deploy.loading import load

        with load(path) as model:
            return model.config
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        return read_metadata(path).config
    import_optional("torch", "train", "A checkpoint")
    from yolact_deploy.model.checkpoint import load_model

    return load_model(path, config=config).config


def _files(folders: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """The files with these suffixes in the folders that exist, but for hidden ones and backbones."""
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and path.name not in _BACKBONES
        and path.is_file()
    ]


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:4])) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


# -- pictures -------------------------------------------------------------------------------------------------------


@contextmanager
def pictures_at_hand(args: argparse.Namespace, config: YolactConfig, limit: int | None) -> Iterator[CocoImages]:
    """Pictures with annotations whose classes the model knows; without any, pictures alone.

    They are those of ./coco, of the dataset that ``YOLACT_COCO`` names, or those that come with the package; generated
    ones exist until the context ends.

    Raises:
        DatasetError: a dataset that cannot be used.
    """
    from yolact_deploy.datasets.image_sets import open_images, plain_images
    from yolact_deploy.datasets.resolve import has_annotations
    from yolact_deploy.datasets.shapes import KINDS, write_shapes

    count = limit or PICTURES
    for source in filter(None, ("coco", os.environ.get(DATASET_VARIABLE))):
        if source == "coco" and not (Path(source).is_dir() and has_annotations(source)):
            continue
        images = open_images(coco=source, limit=count, lenient=getattr(args, "lenient", False))
        if _knows(config, images):
            yield images
            return
        args.progress.note(f"note: {source} is left out: its classes are not those of the model")
    if config.class_names == KINDS:
        with tempfile.TemporaryDirectory(prefix="yolact-shapes-") as folder:
            names = write_shapes(Path(folder), {"val": count})
            for _ in args.progress.track(names, "generating pictures", count):
                pass
            yield open_images(coco=folder)
        return
    shipped = samples.annotated_images(config.class_names)
    images = open_images(annotations=shipped.annotations, images_dir=shipped.images)
    if not _knows(config, images):
        args.progress.note("note: no annotated pictures of the model's classes here, so there is no AP: name some")
        images = plain_images(shipped.paths())
    yield replace(images, images=images.images[:limit])


def _knows(config: YolactConfig, images: CocoImages) -> bool:
    """Whether the model has all annotated classes, under the same ids and, where it has names, the same names."""
    from yolact_deploy.datasets.class_names import other_names

    content = images.content or {}
    used = {annotation["category_id"] for annotation in content.get("annotations", ())}
    names = dict(zip(config.category_ids, config.class_names, strict=True))
    annotated = {c["id"]: c["name"] for c in content.get("categories", ()) if c["id"] in used}
    return used <= set(names) and not other_names(annotated, names)
