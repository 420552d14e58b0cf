"""JPEG files on the GPU: the real nvImageCodec on the CPU, if it is installed, and a stand-in on the fake driver."""

from __future__ import annotations

import gc
import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fake_cuda as fake
import numpy as np
import pytest
from host_network import CpuBackend, HostNetwork, emulated

from yolact_deploy.errors import InputError, MissingDependencyError
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.cuda import jpeg
from yolact_deploy.runtime.cuda.arrays import SharedArray
from yolact_deploy.runtime.cuda.cuda_backend import CudaBackend
from yolact_deploy.runtime.cuda.driver import Device
from yolact_deploy.runtime.predictor import Predictor
from yolact_deploy.samples import sample_images

__all__ = ["emulated"]


def gray(path: Path, level: int, size: tuple[int, int] = (48, 64)) -> Path:
    cv2.imwrite(str(path), np.full((*size, 3), level, np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 100])
    return path


def turned(path: Path, orientation: int) -> Path:
    """A JPEG file whose EXIF has an orientation."""
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:16, :24] = (250, 20, 20)
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0])
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
    return path


# -- the real library -------------------------------------------------------------------------------------------------


@pytest.fixture
def decoder() -> jpeg.JpegDecoder:
    """On the CPU, where the library uses libjpeg-turbo."""
    pytest.importorskip("nvidia.nvimgcodec")
    return jpeg.JpegDecoder(None)


def test_pixels_are_those_of_opencv(decoder: jpeg.JpegDecoder, tmp_path: Path) -> None:
    single = tmp_path / "one_channel.jpg"
    cv2.imwrite(str(single), np.arange(48 * 64, dtype=np.uint8).reshape(48, 64))
    for path in (*sample_images(), single, *(turned(tmp_path / f"{i}.jpg", i) for i in range(1, 9))):
        image = decoder.read(path)
        assert image is not None
        pixels = np.asarray(image.cpu())
        expected = read_image(path)
        assert pixels.shape == expected.shape
        assert pixels.dtype == np.uint8
        assert np.abs(pixels.astype(int) - expected).max() <= 4


def test_what_it_leaves_to_opencv(decoder: jpeg.JpegDecoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    png, broken = tmp_path / "a.png", tmp_path / "broken.jpg"
    cv2.imwrite(str(png), np.zeros((4, 4, 3), np.uint8))
    broken.write_bytes(b"\xff\xd8\xff\xe0 this is no JPEG file")
    for _ in range(2):
        assert decoder.read(png) is None
        assert decoder.read(broken) is None
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"{png} is decoded by OpenCV: only JPEG files are decoded on the GPU",
        f"{broken} is decoded by OpenCV: nvImageCodec cannot decode it",
    ], "each reason once"
    with pytest.raises(InputError, match="no such image"):
        decoder.read(tmp_path / "none.jpg")


# -- in the frame path ------------------------------------------------------------------------------------------------

with_driver = pytest.mark.fake_cuda(memory=64 * 2**20)


class Codec(types.ModuleType):
    """A stand-in for nvidia.nvimgcodec that decodes into the fake driver's memory, as the real one on a GPU."""

    def __init__(self) -> None:
        super().__init__("nvidia.nvimgcodec")
        self.BackendKind = types.SimpleNamespace(CPU_ONLY=1)
        self.SampleFormat = types.SimpleNamespace(I_BGR="BGR")
        self.decoded = 0

    def DecodeParams(self, *, apply_exif_orientation: bool, sample_format: str) -> Any:  # noqa: N802
        assert apply_exif_orientation
        return sample_format

    def CodeStream(self, content: bytes) -> bytes:  # noqa: N802
        return content

    def Decoder(self, *, device_id: int, backends: Any, options: str) -> Codec:  # noqa: N802
        assert (device_id, backends, options) == (0, None, ":fancy_upsampling=1")
        return self

    def decode(self, content: bytes, *, params: str) -> Any:
        assert params == "BGR"
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            return None
        if pixels[0, 0, 0] > 250:
            raise RuntimeError("out of  memory\nfor nvJPEG")
        self.decoded += 1
        device = Device.open(0)
        memory, stream = device.allocate(pixels.nbytes, "nvImageCodec"), device.stream()
        stream.upload(memory.pointer, pixels.ctypes.data, pixels.nbytes)
        stream.synchronize()
        return SharedArray(memory, memory.pointer, pixels.shape, np.uint8, device, stream)


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> Iterator[Codec]:
    module = Codec()
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", module)
    yield module
    gc.collect()
    assert fake.control().leaks() == ""


@with_driver
@pytest.mark.usefixtures("emulated")
def test_files_through_the_frame_path(codec: Codec, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = Device.open(0)
    paths = [gray(tmp_path / f"{i}.jpg", 16 * i + 24, (40 + i, 64)) for i in range(4)]
    expected = Predictor(CpuBackend(), score_threshold=0.05)
    backend = CudaBackend(HostNetwork(device, max_batch=2), device, jpeg=jpeg.open_decoder(0))
    with Predictor(backend, score_threshold=0.05) as model:
        assert backend.describe()["decode"] == "gpu"
        for ours, path in zip(model(paths), paths, strict=True):
            theirs = expected(path)
            assert (ours.height, ours.width) == (theirs.height, theirs.width)
            np.testing.assert_array_equal(ours.scores, theirs.scores)
        assert codec.decoded == 4
        pinned = backend.describe()["pinned_bytes"]["frames"]
        failing = gray(tmp_path / "bright.jpg", 254)
        np.testing.assert_array_equal(model(failing).scores, expected(failing).scores)
        np.testing.assert_array_equal(model(str(paths[0])).scores, expected(paths[0]).scores)
        assert backend.describe()["pinned_bytes"]["frames"] > pinned, "which OpenCV decoded"
        (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warning == f"{failing} is decoded by OpenCV: nvImageCodec failed: out of memory for nvJPEG"
        with pytest.raises(InputError, match="no such image"):
            model(tmp_path / "none.jpg")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(MissingDependencyError, match=r"yolact-deploy\[jpeg\]"):
        jpeg.JpegDecoder(0)
    assert jpeg.open_decoder(0) is None
    assert "JPEG files are decoded by OpenCV: " in caplog.text
    assert "yolact-deploy[jpeg]" in caplog.text
