"""Whatever users hold as an image: accepted with the right pixels, or one clear error."""

from __future__ import annotations

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import read_image
from yolact_deploy.runtime.any_image import as_image, is_single


@pytest.fixture
def bgr() -> NDArray[np.uint8]:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:10, :15] = (10, 120, 240)
    return image


def test_arrays(bgr: NDArray[np.uint8]) -> None:
    assert as_image(bgr) is bgr
    gray = bgr[..., 1]
    for form in (gray, gray[..., None]):
        np.testing.assert_array_equal(as_image(form), np.repeat(gray[..., None], 3, axis=2))
    np.testing.assert_array_equal(as_image(np.dstack([bgr, gray])), bgr)
    np.testing.assert_array_equal(as_image(bgr[:, ::-1]), bgr[:, ::-1])


def test_sixteen_bits() -> None:
    for bits in (8, 12, 16):
        values = np.full((4, 5), (1 << bits) - 1, np.uint16)
        values[0] = 0
        image = as_image(values)
        assert image.dtype == np.uint8
        assert (image[1:] == 255).all()
        assert (image[0] == 0).all()


def test_bytes_and_paths(bgr: NDArray[np.uint8], tmp_path: Path) -> None:
    data = cv2.imencode(".png", bgr)[1].tobytes()
    (tmp_path / "a.png").write_bytes(data)
    for form in (data, bytearray(data), memoryview(data), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(as_image(form), bgr)
    for wrong in (b"", b"nothing", data[:40]):
        with pytest.raises(InputError, match="cannot decode image the bytes of an image"):
            as_image(wrong)


def test_pil(bgr: NDArray[np.uint8], tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.fromarray(bgr[..., ::-1])
    np.testing.assert_array_equal(as_image(image), bgr)
    np.testing.assert_array_equal(as_image(image.convert("RGBA")), bgr)
    assert (as_image(image.convert("L"))[..., 0] == as_image(image.convert("L"))[..., 2]).all()
    assert as_image(image.convert("P")).shape == bgr.shape
    assert as_image(image.convert("1")).max() == 255
    deep = pillow.fromarray(np.full((4, 5), 4095, np.uint16))
    assert (as_image(deep) == 255).all()
    with pytest.raises(InputError, match="mode F"):
        as_image(image.convert("F"))
    # EXIF turns a PIL image as it turns the file.
    exif = pillow.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    ours, theirs = as_image(pillow.open(tmp_path / "turned.jpg")), read_image(tmp_path / "turned.jpg")
    assert ours.shape == theirs.shape == (30, 20, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= 3


def test_torch(bgr: NDArray[np.uint8]) -> None:
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(as_image(torch.from_numpy(bgr)), bgr)
    for wrong in (torch.zeros(3, 20, 30), torch.zeros(3, 20, 30, dtype=torch.uint8), torch.zeros(20, 30, 3)):
        with pytest.raises(InputError, match=r"permute\(1, 2, 0\)"):
            as_image(wrong)
    with pytest.raises(InputError, match="got a tensor on meta"):
        as_image(torch.zeros(20, 30, 3, dtype=torch.uint8, device="meta"))


def test_addresses(bgr: NDArray[np.uint8]) -> None:
    data = cv2.imencode(".png", bgr)[1].tobytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the library's name
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        np.testing.assert_array_equal(as_image(f"{address}/a.png"), bgr)
        with pytest.raises(InputError, match=r"cannot fetch .*404"):
            as_image(f"{address}/b.png")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    with pytest.raises(InputError, match="cannot fetch http://") as caught:
        as_image("http://me:secret@127.0.0.1:9/a.png")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [None, 3, 1.5, [[1, 2]], np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 2), np.uint8), np.zeros((5, 5, 3)),
     np.zeros((2, 5, 5, 3), np.uint8), np.zeros((5, 5, 3), bool), object()],
)  # fmt: skip
def test_anything_else(wrong: object) -> None:
    with pytest.raises(InputError, match="expected a"):
        as_image(wrong)


def test_one_image_or_several(bgr: NDArray[np.uint8]) -> None:
    torch = pytest.importorskip("torch")
    pillow = pytest.importorskip("PIL.Image")
    single = (bgr, "a.jpg", Path("a"), b"x", io.BytesIO().getvalue(), torch.zeros(3, 3), pillow.new("L", (3, 3)))
    assert all(map(is_single, single))
    assert not any(map(is_single, ([bgr], (bgr,), None, 3, iter([bgr]))))
