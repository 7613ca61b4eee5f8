"""The variance of the gradient against the batch size: its arithmetic, and all of it on a tiny detector."""

import csv
import json
from pathlib import Path

import pytest
import torch
from command_line import call
from tiny_settings import TINY_DENSE

import boxwright as bw
from boxwright.assembly import set_num_classes
from boxwright.config import apply_overrides, build, to_json
from boxwright.engine.checkpoint import save_weights
from boxwright.errors import CheckpointError, ConfigError
from boxwright.variance import GradientVariance, Halves


@pytest.fixture(scope="module")
def weights(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights with their experiment, as a checkpoint keeps them."""
    config = bw.recipe("fcos_mnv2_320")
    apply_overrides(config, [*TINY_DENSE, f"data.root={tiny_data}"])
    data = bw.data.folder(tiny_data)
    set_num_classes(config, len(data.label_map))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    metadata = {"config": to_json(config), "label_map": data.label_map.to_json()}
    save_weights(path, build(config.model).state_dict(), metadata)
    return path


def test_halves_give_the_variances_of_all_sizes():
    g = torch.Generator().manual_seed(0)
    vectors = torch.randn(16, 7, generator=g, dtype=torch.float64) + 100
    tree = Halves()
    for vector in vectors:
        tree.add([vector[:3].clone(), vector[3:].clone()])
    variances, counts, mean_square = tree.variances()
    assert counts == (16, 8, 4, 2)
    for level, found in enumerate(variances):
        means = vectors.reshape(-1, 2**level, 7).mean(1)
        assert found == pytest.approx(means.var(0).sum().item(), rel=1e-6)
    assert mean_square == pytest.approx(vectors.mean(0).square().sum().item(), rel=1e-6)


def test_independent_gradients_follow_the_linear_rule():
    g = torch.Generator().manual_seed(1)
    tree = Halves()
    for _ in range(64):
        tree.add([torch.randn(20000, generator=g) + 3])
    variance, groups, square = tree.variances()
    found = GradientVariance("", tuple(2 * 2**k for k in range(6)), groups, variance, square, 20000)
    assert found.predicted[1] == found.variance[0] / 2
    assert found.ratios == pytest.approx([1.0] * 6, abs=0.05)


def test_a_checkpoint_is_measured_and_written(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "plots" / "variance.png"
    words = ["variance", weights, "--out", out, "--batches", 8, "--device", "cpu", "--quiet"]
    assert call(*words) == 0
    assert "ratio" in capsys.readouterr().out
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [(int(r["images"]), int(r["groups"])) for r in rows] == [(1, 8), (2, 4), (4, 2)]
    assert all(float(r["variance"]) > 0 for r in rows)
    again = bw.gradient_variance(weights, batches=8, device="cpu", progress=False)
    assert json.loads(out.with_suffix(".json").read_text())["variance"] == list(again.variance)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_positives_are_told_as_a_share_of_what_is_trained(weights: Path, tiny_data: Path):
    detector = bw.load(weights, device="cpu")
    loader = bw.data.loader.Loader(
        bw.data.folder(tiny_data).train, detector.transforms, detector.canvas, 2, shuffle=False
    )
    losses = detector.model.train()(next(iter(loader)))
    places = sum((64 // stride) ** 2 for stride in detector.model.head.strides)
    assert losses["stat/positive_share"] == pytest.approx(losses["stat/positives"].item() / places)
    assert 0 < losses["stat/positive_share"] < 1


def test_bad_questions_are_refused(weights: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="batches=6 must be a power of two"):
        bw.gradient_variance(weights, batches=6)
    save_weights(tmp_path / "bare.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="without their experiment"):
        bw.gradient_variance(tmp_path / "bare.safetensors", device="cpu")
