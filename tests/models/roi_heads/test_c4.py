"""A ResNet cut behind its third stage, the fourth in the region head; atrous stages."""

import pytest
import torch
from torch import nn

from boxwright.errors import ConfigError
from boxwright.models.assigners import MaxIoUAssigner
from boxwright.models.backbones import ResNet, TimmBackbone
from boxwright.models.coders import DeltaCoder
from boxwright.models.losses import CrossEntropy, SmoothL1
from boxwright.models.roi_heads import (
    BoxHead,
    MaskHead,
    RoICriterion,
    RoIExtractor,
    RoIHeads,
    RoIPostprocess,
    StageTrunk,
    TwoFC,
)
from boxwright.models.samplers import RandomSampler
from boxwright.structures import Detections, FeatureSpec

SPECS = (FeatureSpec(256, 16),)


def network(**arguments) -> ResNet:
    return ResNet(18, out_stages=(3, 4), frozen_stages=0, **arguments)


def box_head(specs=SPECS, trunk=None) -> BoxHead:
    return BoxHead(
        specs,
        num_classes=3,
        coder=DeltaCoder(),
        criterion=RoICriterion(MaxIoUAssigner(0.5, 0.5), RandomSampler(8, 0.25), CrossEntropy(), SmoothL1()),
        postprocess=RoIPostprocess(score_threshold=0.0),
        extractor=RoIExtractor(size=6, levels=1),
        trunk=trunk or (lambda channels, size: StageTrunk(channels, size, network=network)),
    )


def test_backbone_and_trunk_make_the_whole_network():
    torch.manual_seed(0)
    whole = ResNet(18, out_stages=(3, 4)).eval()
    backbone, trunk = ResNet(18, out_stages=(3,)).eval(), StageTrunk(256, 6, network=network).eval()
    state = whole.state_dict()
    backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("layer4.")})
    trunk.stage.load_state_dict({k[7:]: v for k, v in state.items() if k.startswith("layer4.")})
    assert backbone.specs == SPECS
    with torch.no_grad():
        c4, c5 = whole(torch.randn(2, 3, 64, 96))
        torch.testing.assert_close(trunk.maps(c4), c5)
        torch.testing.assert_close(trunk(c4), c5.mean((2, 3)))
    assert trunk.out_features == 512


def test_norms_of_the_trunk_keep_their_statistics():
    trunk = StageTrunk(256, 6, network=network).train()
    norms = [layer for layer in trunk.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    assert not any(layer.training for layer in norms)
    assert all(parameter.requires_grad for parameter in trunk.parameters())
    free = StageTrunk(256, 6, network=lambda: network(norm_eval=False)).train()
    assert all(layer.training for layer in free.modules() if isinstance(layer, nn.BatchNorm2d))


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18", "convnext_atto"])
def test_the_last_stage_of_a_network_of_timm(name: str):
    torch.manual_seed(3)
    whole = TimmBackbone(name, min_stride=16).eval()
    trunk = StageTrunk(whole.specs[0].channels, 4, network=lambda: whole).eval()
    with torch.no_grad():
        before, after = whole(torch.randn(1, 3, 64, 64))
        torch.testing.assert_close(trunk.maps(before), after)
    assert trunk.out_features == after.shape[1]
    with pytest.raises(ConfigError, match="cannot be cut off"):
        TimmBackbone(name, min_stride=32).last_stage()


def test_arguments_that_do_not_fit():
    with pytest.raises(ConfigError, match="1024 channels"):
        StageTrunk(1024, 14, network=network)
    with pytest.raises(ConfigError, match="TwoFC has no maps"):
        RoIHeads(
            SPECS,
            stages=[lambda specs: box_head(specs, TwoFC)],
            mask=lambda specs: MaskHead(specs, num_classes=3),
            share_trunk=True,
        )


def test_masks_go_on_from_the_maps_that_the_boxes_use():
    torch.manual_seed(1)
    heads = RoIHeads(
        SPECS,
        stages=[box_head],
        mask=lambda specs: MaskHead(specs, num_classes=3, convs=0, channels=32),
        share_trunk=True,
    ).eval()
    names = [name for name, _ in heads.named_parameters()]
    assert sum("stage.0.conv1" in name for name in names) == 1  # one trunk, not two
    feature = torch.randn(2, 256, 8, 8)
    corner = torch.rand(2, 5, 2) * 60
    boxes = torch.cat((corner, corner + 30), -1)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    sizes = torch.tensor([[128, 128]] * 2)
    with torch.no_grad():
        proposals = Detections(boxes, torch.ones(2, 5), torch.zeros(2, 5).long(), valid)
        found = heads.predict([feature], proposals, sizes)
        assert found.masks is not None
        assert found.masks.shape[2:] == (6, 6)
        # By hand, for one detection: pool, fourth stage, upsample, its class's mask.
        stage, mask = heads.stages[0], heads.mask
        assert isinstance(stage, BoxHead)
        assert isinstance(stage.trunk, StageTrunk)
        assert isinstance(mask, MaskHead)
        pooled = stage.extractor([feature], stage.strides, found.boxes, found.valid)[0, :1]
        hidden = torch.relu(mask.upsample(stage.trunk.stage(pooled)))
        expected = mask.predictor(hidden)[0, int(found.labels[0, 0])].sigmoid()
        torch.testing.assert_close(found.masks[0, 0], expected, rtol=1e-4, atol=1e-5)
        maps = stage.maps([feature], boxes, valid)
        assert maps.shape == (2, 5, 512, 3, 3)
        assert not maps[1, 3:].any()
        outputs = stage([feature], boxes, valid)
        logits = stage.class_predictor(maps.mean((3, 4)))
        torch.testing.assert_close(outputs.class_logits[valid], logits[valid], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("strides", "dilations", "stride"),
    [((1, 2, 2, 1), (1, 1, 1, 2), 16), ((1, 2, 1, 1), (1, 1, 2, 4), 8)],
)
def test_atrous_stages_are_denser_and_agree_where_the_strided_ones_are(strides, dilations, stride):
    """With the stride on the first 1x1 convolution: as the strided stage, at the places between, too."""
    torch.manual_seed(2)
    options = {"style": "caffe", "out_stages": (2, 3, 4), "norm_eval": True}
    strided, atrous = (
        ResNet(50, **options).eval(),
        ResNet(50, **options, strides=strides, dilations=dilations).eval(),
    )
    atrous.load_state_dict(strided.state_dict())
    assert strided.specs[-1] == FeatureSpec(2048, 32)
    assert atrous.specs[-1] == FeatureSpec(2048, stride)
    with torch.no_grad():
        image = torch.randn(1, 3, 96, 128)
        coarse, fine = strided(image), atrous(image)
    for level, spec, dense in zip(coarse, atrous.specs, fine, strict=True):
        every = dense.shape[-1] // level.shape[-1]
        assert dense.shape[-1] == 128 // spec.stride
        scale = level.abs().max().item()
        torch.testing.assert_close(dense[..., ::every, ::every], level, rtol=1e-4, atol=1e-5 * scale)
    assert fine[-1].shape[-1] > coarse[-1].shape[-1]
