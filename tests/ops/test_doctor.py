import pytest

from boxwright.ops.doctor import backends, errors


@pytest.mark.parametrize("seed", [0, 1])
def test_fast_paths_agree_with_references(seed):
    result = errors(seed=seed)
    assert set(result) == {
        "nms",
        "roi_align",
        "roi_align_backward",
        "deform_conv2d",
        "deform_conv2d_backward",
        "mask_targets",
        "paste",
        "soft_nms",
        "ps_roi_pool",
        "ps_roi_pool_backward",
    }
    assert result["nms"] == result["paste"] == 0
    assert max(result.values()) < 1e-4


def test_backends_name_every_operator():
    forwards = {name for name in errors() if not name.endswith("_backward")}
    assert set(backends("cpu")) == set(backends("cuda")) == forwards


@pytest.mark.gpu
def test_fast_paths_agree_with_references_on_a_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    result = errors("cuda")
    assert result["nms"] == result["paste"] == 0
    assert max(result.values()) < 1e-4
