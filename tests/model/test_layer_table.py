from __future__ import annotations

import json
from functools import cache

import pytest
from deterministic import GOLDEN
from few import few_rows

from yolact_deploy.config import YolactConfig, get_config

pytest.importorskip("torch")

from yolact_deploy.model.layer_table import layer_table, summary_dict
from yolact_deploy.training import YolactModel


@pytest.mark.parametrize(
    ("name", "gmac", "priors"),
    few_rows(
        [
            ("yolact_base", 82.34, 19248),
            ("yolact_resnet50", 59.14, 19248),
            ("yolact_im400", 42.72, 10077),
            ("yolact_im700", 131.46, 30963),
            ("yolact_darknet53", 77.35, 19248),
            ("yolact_edge_mobilenetv2", 34.4, 19248),
            ("yolact_plus_base", 93.67, 57744),
            ("yolact_plus_resnet50", 70.69, 57744),
        ],
        5,
    ),
)
def test_figures(name: str, gmac: float, priors: int) -> None:
    figures = summary_dict(get_config(name))
    assert figures["gmac"] == pytest.approx(gmac, rel=0.005)
    assert figures["priors"] == priors
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.golden
def test_figures_are_those_of_the_original() -> None:
    for name, golden in json.loads((GOLDEN / "macs_params.json").read_text()).items():
        figures = summary_dict(get_config(name))
        assert figures["parameters"] == golden["params"]
        assert figures["priors"] == golden["priors"]
        assert figures["gmac"] == pytest.approx(golden["GMACs"], rel=1e-6)


def test_a_model_is_described_as_it_is() -> None:
    model = YolactModel(YolactConfig(backbone="mobilenet_v2", image_size=96, num_classes=2, fpn_channels=8))
    model.backbone.requires_grad_(False)
    figures = summary_dict(model)
    assert figures["parameters"] - figures["trainable"] == sum(p.numel() for p in model.backbone.parameters())
    assert figures["level_sizes"] == [12, 6, 3, 2, 1]
    assert figures["prototype_size"] == 24


table_of = cache(lambda name: layer_table(get_config(name)))


def rows_of(name: str, layer: str) -> list[tuple[str, str, str, str]]:
    return [row for row in table_of(name).rows if row[0].strip().startswith(f"{layer}:")]


def test_the_table_shows_layers_and_totals() -> None:
    table = table_of("yolact_base")
    notes = " ".join(table.notes)
    assert any(name.strip() == "backbone: ResNetBackbone" for name, *_ in table.rows)
    assert "parameters 50,157,071" in notes
    assert "convolutions 82.34 GMAC" in notes
    assert "82.44 GMAC with the semantic layer" in notes
    assert "(47.95 GMAC) prints about 34.5" in notes
    assert "priors 19,248 on levels of 69 35 18 9 5" in notes
    assert len(layer_table(get_config("yolact_base"), depth=1).rows) < len(table.rows)


def test_the_rows_of_the_semantic_layer_and_of_the_head() -> None:
    ((_, output, parameters, macs),) = rows_of("yolact_base", "semantic_seg_conv")
    assert (output, parameters, macs) == ("[1, 80, 69, 69]", "20,560", f"{80 * 257 * 69 * 69:,}")
    for name, number in (
        ("upfeature", "590,080"), ("bbox_layer", "27,660"), ("conf_layer", "560,115"), ("mask_layer", "221,280")
    ):  # fmt: skip
        first, *rest = rows_of("yolact_base", name)
        assert first[2] == number
        assert [row[2] for row in rest] == ["(recursive)"] * 4
    assert rows_of("yolact_base", "conv1")[0][2] == "9,408"


def test_the_table_of_yolact_plus() -> None:
    notes = " ".join(layer_table(get_config("yolact_plus_resnet50")).notes)
    assert "parameters 33,766,460" in notes
    assert "convolutions 70.69 GMAC" in notes
