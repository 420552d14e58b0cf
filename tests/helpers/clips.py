"""Clips made with PyAV: rotated, with frames of uneven length, with audio, cut short, and without frames."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def numbered(index: int, width: int = 96, height: int = 64) -> Image:
    """A frame whose gray level says its number, with a bright corner at the top left."""
    image = np.full((height, width, 3), (index * 20) % 220, np.uint8)
    image[: height // 4, : width // 4] = 250
    return image


def write_clip(
    path: Path,
    count: int = 10,
    *,
    size: tuple[int, int] = (96, 64),
    seconds: Sequence[float] | None = None,
    rotation: int = 0,
    audio: bool = False,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
    noise: int = 0,
) -> Path:
    """A video of ``count`` numbered frames at 10 per second, or shown at ``seconds``.

    Args:
        noise: gray levels of noise
    """
    import av

    with av.open(str(path), "w", options=options or {}) as out:
        stream: Any = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if codec == "libx264":
            stream.options = {"g": "5", "crf": "10"}
        if rotation:
            stream.set_display_rotation(rotation)
        sound: Any = out.add_stream("aac", rate=16000, layout="mono") if audio else None
        for index in range(count):
            image = numbered(index, *size)
            if noise:
                image += np.random.default_rng(index).integers(0, noise, image.shape, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts = round(1000 * (index / 10 if seconds is None else seconds[index]))
            frame.time_base = Fraction(1, 1000)
            out.mux(stream.encode(frame))
            if sound is not None:
                wave = np.sin(np.arange(1600) * 0.05)[None].astype(np.float32)
                piece = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 16000, index * 1600, Fraction(1, 16000)
                out.mux(sound.encode(piece))
        out.mux(stream.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return path


def audio_packets(path: Path) -> list[bytes]:
    """The bytes of each packet of audio of a file."""
    import av

    with av.open(str(path)) as file:
        if not file.streams.audio:
            return []
        return [bytes(packet) for packet in file.demux(file.streams.audio[0]) if packet.size]


def frame_times(path: Path) -> list[float]:
    """When each frame is shown, in seconds."""
    import av

    with av.open(str(path)) as file:
        return sorted(
            float(packet.pts * packet.time_base)
            for packet in file.demux(file.streams.video[0])
            if packet.pts is not None
        )
