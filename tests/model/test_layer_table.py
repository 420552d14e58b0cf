from __future__ import annotations

import json

import pytest
from deterministic import GOLDEN
from few import few_rows

from yolact_deploy.config import YolactConfig, get_config

pytest.importorskip("torch")

from yolact_deploy.model.layer_table import summarize, summary_dict
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


def test_the_table_shows_layers_and_totals() -> None:
    table = summarize(get_config("yolact_base"))
    assert "ResNetBackbone (backbone)" in table
    assert "Total params: 50,157,071" in table
    assert "convolutions 82.34 GMAC" in table
    assert "82.44 GMAC with the semantic layer" in table
    assert "(47.95 GMAC) prints about 34.5" in table
    assert "priors 19,248 on levels of 69 35 18 9 5" in table
    assert len(summarize(get_config("yolact_base"), depth=1).splitlines()) < len(table.splitlines())


def test_the_rows_of_the_semantic_layer_and_of_the_head() -> None:
    rows = [line.split() for line in summarize(get_config("yolact_base")).splitlines()]

    def row(name: str) -> list[str]:
        return next(words for words in rows if f"({name}):" in " ".join(words))

    assert "20,560" in row("semantic_seg_conv")
    assert row("semantic_seg_conv")[3:7] == ["[1,", "80,", "69,", "69]"] or "69]" in row("semantic_seg_conv")
    for name, parameters in (
        ("upfeature", "590,080"), ("bbox_layer", "27,660"), ("conf_layer", "560,115"), ("mask_layer", "221,280")
    ):  # fmt: skip
        assert parameters in row(name)
    assert "9,408" in row("conv1")
    assert sum("conf_layer):" in " ".join(words) for words in rows) == 5


def test_the_table_of_yolact_plus() -> None:
    table = summarize(get_config("yolact_plus_resnet50"))
    assert "Total params: 33,766,460" in table
    assert "convolutions 70.69 GMAC" in table
