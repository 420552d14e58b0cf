"""Reading, resizing and normalizing pictures."""

from __future__ import annotations

import io
import struct
import sys
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from deterministic import golden_networks

from yolact_deploy import preprocess
from yolact_deploy.config import get_config
from yolact_deploy.errors import InputError
from yolact_deploy.preprocess import check_image, header_size, normalize, read_image, resize_image

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))
NETWORKS = golden_networks()


@pytest.mark.golden
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
# Their cv2 transform is ours; their fast one resizes in torch, which differs by up to 1e-4 (pre.fast_vs_cv2_maxabs).
@pytest.mark.parametrize(("variant", "atol"), [("cv2", 1e-4), ("fast", 2e-4)])
def test_input_equals_the_originals(name: str, index: int, variant: str, atol: float) -> None:
    from goldencheck import check_sample

    config = get_config(name)
    image = read_image(GOLDEN / f"input{index}.png")
    tensor = normalize(resize_image(image, config.image_size, "float32")[None], config)
    with np.load(GOLDEN / f"net_{name}.npz") as golden:
        ok, worst = check_sample(golden, f"img{index}.pre.{variant}", tensor, atol=atol, rtol=0)
    assert ok, worst


def test_normalize_swaps_to_rgb_planes() -> None:
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[..., 0] = 255  # blue
    tensor = normalize(image, get_config("yolact_darknet53"))
    assert tensor.shape == (1, 3, 2, 2)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor[0, :, 0, 0], [0, 0, 1])


def test_normalize_constants() -> None:
    tensor = normalize(np.zeros((1, 1, 1, 3), np.uint8), get_config("yolact_base"))
    np.testing.assert_allclose(tensor.ravel(), [-123.68 / 58.40, -116.78 / 57.12, -103.94 / 57.38], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (37, 53), (64, 64)])
def test_resize(dtype: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    resized = resize_image(image, 64, dtype)
    assert resized.shape == (64, 64, 3)
    assert resized.dtype == dtype
    if shape == (64, 64):
        np.testing.assert_array_equal(resized, image)


def test_resize_uint8_is_the_float_one_within_one_gray_level() -> None:
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8)
    difference = resize_image(image, 64).astype(float) - resize_image(image, 64, "float32")
    assert np.abs(difference).max() < 1  # OpenCV interpolates bytes in fixed point


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_read_image(tmp_path: Path, suffix: str) -> None:
    image = np.random.default_rng(2).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / f"ünicode name{suffix}"
    path.write_bytes(cv2.imencode(suffix, image)[1].tobytes())
    np.testing.assert_array_equal(read_image(path), image)
    np.testing.assert_array_equal(read_image(str(path)), image)


def test_read_image_converts_gray_to_color(tmp_path: Path) -> None:
    path = tmp_path / "gray.png"
    path.write_bytes(cv2.imencode(".png", np.full((4, 4), 9, np.uint8))[1].tobytes())
    np.testing.assert_array_equal(read_image(path), np.full((4, 4, 3), 9))


def test_read_image_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such image: .*none\.png"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot read image"):
        read_image(tmp_path)
    for name, data in {"empty.jpg": b"", "text.jpg": b"not a picture", "cut.png": b"\x89PNG\r\n\x1a\n\x00"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"cannot decode image .*{name}"):
            read_image(tmp_path / name)


GRAY = np.linspace(0, 255, 64 * 80).astype(np.uint8).reshape(64, 80)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".jp2"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_pictures_are_scaled_by_their_depth(
    bits: int, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "_reported", set())
    for name in ("a", "b"):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(cv2.imencode(suffix, GRAY.astype(np.uint16) << (bits - 8))[1].tobytes())
        assert np.abs(read_image(path)[..., 0].astype(int) - GRAY).max() <= 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (bits < 16)
    assert all(f"read as {bits} bits" in text and "a." in text for text in said)


@pytest.mark.parametrize("most", [1, 100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P5", "P6"])
def test_netpbm_files_are_scaled_by_the_largest_value_of_their_header(kind: str, most: int, tmp_path: Path) -> None:
    values = np.rint(GRAY / 255 * most).astype(">u2" if most > 255 else "u1")
    body = " ".join([*map(str, values.ravel()), "\n"]).encode() if kind == "P2" else values.tobytes()
    if kind == "P6":
        body = np.repeat(values, 3).tobytes()
    path = tmp_path / "a.ppm"
    path.write_bytes(f"{kind}\n# of a camera\n80 64\n{most}\n".encode() + body)
    assert np.abs(read_image(path)[..., 0] - values * (255 / most)).max() <= 1


def test_pictures_of_floats_are_refused(tmp_path: Path) -> None:
    for suffix in (".pfm", ".tiff"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(cv2.imencode(suffix, np.ones((4, 4, 3), np.float32))[1].tobytes())
        with pytest.raises(InputError, match="cannot decode image"):
            read_image(path)


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("IMG_1.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400), "HEIC"),
        ("renamed.jpg", b"\0\0\0\x18ftypheix\0\0\0\0mif1heic" + bytes(400), "HEIC"),
        ("a.jxl", b"\xff\x0a" + bytes(40), "JPEG XL"),
        ("a.psd", b"8BPS\0\1" + bytes(40), "Photoshop"),
        ("a.CR2", bytes(40), "camera raw"),
        ("a.svg", b"<svg/>", "SVG"),
    ],
)
def test_pictures_of_other_kinds_are_named(name: str, data: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: OpenCV cannot read pictures of this kind \({kind}\)"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_cut_pictures_are_refused(suffix: str, share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (60, 80, 3), np.uint8)
    data = cv2.imencode(suffix, noise)[1].tobytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="it is damaged"):
        read_image(tmp_path / f"a{suffix}")


def test_a_name_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(InputError, match="cannot read image"):
        read_image("a\0.png")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}{list(image.shape)}",
)
def test_check_image_says_expected_and_actual(image: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected an image uint8 BGR \[H, W, 3\], got") as caught:
        check_image(image)
    assert f"{image.dtype} {list(image.shape)}" in str(caught.value)


def test_check_image_wants_an_array() -> None:
    with pytest.raises(InputError, match="got list"):
        check_image([[1, 2, 3]])
    with pytest.raises(InputError, match=r"got NoneType; cv2\.imread returns None"):
        check_image(None)
    image = np.zeros((2, 2, 3), np.uint8)
    assert check_image(image) is image


# -- the size in the header -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", []),
        (".jpg", []),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".bmp", []),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
        (".tif", []),
        (".ppm", []),
        (".pgm", []),
        (".pam", []),
        (".jp2", []),
        (".sr", []),
        (".hdr", []),
        (".gif", []),
    ],
)
def test_size_in_the_header(suffix: str, options: list[int]) -> None:
    picture = np.zeros((123, 147, 3), np.float32 if suffix == ".hdr" else np.uint8)
    try:
        written, data = cv2.imencode(suffix, picture[..., 0] if suffix == ".pgm" else picture, options)
    except cv2.error:
        pytest.skip("this OpenCV does not write it")
    assert written
    assert header_size(io.BytesIO(data.tobytes())) == (123, 147)


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0) + bytes(4)


def tiff_header(order: str, kind: int, width: int, height: int, big: bool) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    tags = ((256, width), (257, height), (259, 1))
    if big:
        entries = b"".join(struct.pack(f"{order}HHQQ", tag, 16, 1, value) for tag, value in tags)
        return mark + struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, len(tags)) + entries
    form = {3: f"{order}HHIHxx", 4: f"{order}HHII"}[kind]
    entries = b"".join(struct.pack(form, tag, kind, 1, value) for tag, value in tags)
    return mark + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries


def jpeg_header(width: int, height: int, between: bytes = b"") -> bytes:
    return b"\xff\xd8" + between + b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes(9)


@pytest.mark.parametrize(
    "header",
    [
        png_header(60_000, 60_000),
        png_header(0xFFFFFFFF, 0xFFFFFFFF),
        jpeg_header(65_000, 65_000),
        jpeg_header(65_000, 65_000, b"\xff\xe2\xea\x62" + bytes(60_000)),  # a color profile
        jpeg_header(65_000, 65_000, b"\xff\xff\xff\xff"),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 100_000, -100_000, 1, 24, 0, 0, 0, 0, 0, 0),
        tiff_header("<", 4, 10**9, 10**9, big=False),
        tiff_header(">", 3, 60_000, 60_000, big=False),
        tiff_header("<", 4, 10**6, 10**6, big=True),
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\x03\xff\xff\x03",
        b"RIFF\0\0\0\0WEBPVP8L\x0a\0\0\0\x2f\xff\xff\xff\xff",
        b"P6\n# a comment\n100000 100000\n255\n",
        b"P1 100000 100000 ",
        b"P7\nWIDTH 100000\nHEIGHT 100000\nDEPTH 3\n",
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 100000 +X 100000\n",
        b"GIF89a\xff\xff\xff\xff",
    ],
    ids=lambda header: repr(header[:16]),
)
def test_pictures_too_large_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    (tmp_path / "x.png").write_bytes(header + bytes(1000))
    with pytest.raises(InputError, match=r"x\.png has \d+ x \d+ pixels, more than 200,000,000: set YOLACT_DEPLOY_MAX"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize(("limit", "refused"), [("1080", True), ("1081", False), ("", False), ("1", True)])
def test_the_limit_on_pixels_can_be_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, refused: bool
) -> None:
    monkeypatch.setenv("YOLACT_DEPLOY_MAX_PIXELS", limit)
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((23, 47, 3), np.uint8))
    with pytest.raises(InputError, match="47 x 23 pixels, more than") if refused else nullcontext():
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("limit", ["many", "-1", "1e6", "9" * 5000])
def test_a_limit_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("YOLACT_DEPLOY_MAX_PIXELS", limit)
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((23, 47, 3), np.uint8))
    with pytest.raises(InputError, match="YOLACT_DEPLOY_MAX_PIXELS: expected a number of pixels"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"II*\0",
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        b"RIFF\0\0\0\0WEBP",
        b"BM",
        b"text",
        b"P6",
    ],
)
def test_headers_that_are_cut_have_no_size(data: bytes) -> None:
    assert header_size(io.BytesIO(data)) is None
