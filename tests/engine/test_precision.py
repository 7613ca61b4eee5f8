"""What a wish for a precision becomes."""

import pytest
import torch

from boxwright.engine import precision as module
from boxwright.engine import resolve_device, resolve_precision
from boxwright.errors import ConfigError


def test_auto_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(module, "_cpu_bf16_features", lambda: [])
    assert resolve_precision("auto", "cpu").name == "fp32"
    assert "no avx512_bf16" in resolve_precision("auto", "cpu").reason
    monkeypatch.setattr(module, "_cpu_bf16_features", lambda: ["avx512_bf16"])
    fast = resolve_precision("auto", "cpu")
    assert (fast.name, fast.dtype, fast.channels_last) == ("bf16", torch.bfloat16, True)
    assert "avx512_bf16" in fast.reason
    assert resolve_precision("auto", "meta").name == "fp32"


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_cuda_by_capability(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    resolved = resolve_precision("auto", "cuda")
    assert resolved.name == name
    assert resolved.channels_last


def test_this_cpu_is_asked_without_error():
    assert isinstance(module._cpu_bf16_features(), list)


def test_old_pytorch_is_asked_in_its_way(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert "avx512_bf16" in module._cpu_bf16_features()


def test_refusals():
    with pytest.raises(ConfigError, match="fp16"):
        resolve_precision("fp16", "cpu")
    with pytest.raises(ConfigError, match="choose one of"):
        resolve_precision("half", "cpu")
    with pytest.raises(ConfigError, match="device"):
        resolve_device("gpu7")


def test_autocast():
    with resolve_precision("bf16", "cpu").autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with resolve_precision("fp32", "cpu").autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
