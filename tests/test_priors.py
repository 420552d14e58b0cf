"""Prior boxes and box decoding."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from deterministic import golden_networks

from yolact_deploy.config import get_config, list_configs
from yolact_deploy.priors import decode_boxes, make_priors

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = golden_networks()


@pytest.mark.golden
@pytest.mark.parametrize("name", NETWORKS)
def test_priors_equal_the_originals(name: str) -> None:
    priors = make_priors(get_config(name))
    with np.load(GOLDEN / f"net_{name}.npz") as golden:
        np.testing.assert_array_equal(priors, golden["priors"])
        cells = np.square(get_config(name).level_sizes) * get_config(name).priors_per_cell
        np.testing.assert_array_equal(cells, golden["priors.sizes"].ravel())
    expected = json.loads((GOLDEN / f"net_{name}.json").read_text())["priors"]
    assert len(priors) == expected["count"]
    assert hashlib.sha256(priors.astype("<f4").tobytes()).hexdigest() == expected["sha256_float32"]


@pytest.mark.parametrize("name", list_configs())
def test_shape_and_cache(name: str) -> None:
    config = get_config(name)
    priors = make_priors(config)
    assert priors.shape == (config.num_priors, 4)
    assert priors.dtype == np.float32
    assert make_priors(config) is priors
    with pytest.raises(ValueError, match="read-only"):
        priors[0, 0] = 1


def test_square_and_true_ratios() -> None:
    square = make_priors(get_config("yolact_base"))
    np.testing.assert_array_equal(square[:, 2], square[:, 3])
    true = make_priors(get_config("yolact_resnet50_pascal"))[:3]
    np.testing.assert_allclose(true[:, 2] / true[:, 3], [1, 0.5, 2], rtol=1e-6)
    np.testing.assert_allclose(true[:, 2] * true[:, 3], (32 / 550) ** 2, rtol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("pure_seed*.npz")), ids=lambda path: path.stem)
def test_decode_equals_the_originals(path: Path) -> None:
    with np.load(path) as golden:
        boxes = decode_boxes(golden["codec.loc"], golden["codec.priors"])
        np.testing.assert_allclose(boxes, golden["codec.decode"], rtol=1e-5, atol=1e-6)


def test_decode_of_zero_is_the_prior() -> None:
    priors = np.array([[0.5, 0.5, 0.2, 0.4]], np.float32)
    boxes = decode_boxes(np.zeros((2, 1, 4), np.float32), priors)
    np.testing.assert_allclose(boxes, [[[0.4, 0.3, 0.6, 0.7]]] * 2, rtol=1e-6)


def test_decode_of_absurd_values_does_not_warn() -> None:
    boxes = decode_boxes(np.full((1, 4), 1e4, np.float32), np.full((1, 4), 0.5, np.float32))
    assert boxes.dtype == np.float32
    assert not np.isfinite(boxes).all()
