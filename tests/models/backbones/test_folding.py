import copy

import pytest
import torch
from torch import nn

from boxwright.models.backbones.folding import fold_norms
from boxwright.models.backbones.timm import TimmBackbone
from boxwright.models.layers import set_folding


def randomise(net):
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)


@pytest.mark.parametrize("name", ["mobilenetv2_100", "resnet18", "efficientnet_b0", "densenet121"])
def test_features_and_gradients_are_those_of_the_network(name):
    import timm

    torch.manual_seed(0)
    plain = timm.create_model(name, features_only=True, pretrained=False)
    randomise(plain)
    folded = copy.deepcopy(plain)
    count = fold_norms(folded)
    assert count > 15
    assert list(folded.state_dict()) == list(plain.state_dict())
    set_folding(folded, "always")
    x, results = torch.randn(1, 3, 64, 64), []
    for net in (plain, folded, copy.deepcopy(folded)):
        net.eval()
        net.zero_grad()
        features = net(x)
        sum(f.pow(2).mean() for f in features).backward()
        results.append(
            [f.detach() for f in features] + [p.grad for p in net.parameters() if p.grad is not None]
        )
    for other in results[1:]:
        assert len(other) == len(results[0])
        for ours, expected in zip(other, results[0], strict=True):
            scale = expected.std().clamp(min=1e-6) if expected.numel() > 1 else expected.abs() + 1e-6
            assert ((ours - expected).abs().max() / scale) < 2e-3
    plain.train(), folded.train()
    torch.manual_seed(0)
    expected = plain(x.expand(2, -1, -1, -1))
    torch.manual_seed(0)
    for ours, theirs in zip(folded(x.expand(2, -1, -1, -1)), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_network_that_cannot_be_traced_is_left_alone():
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > 0 else x

    assert fold_norms(Choosy()) == 0


def test_a_shared_layer_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    assert fold_norms(Shared()) == 0


def test_the_timm_backbone_compiles_whole():
    backbone = TimmBackbone("mobilenetv2_100", min_stride=8)
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(x), backbone(x), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
