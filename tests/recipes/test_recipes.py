"""Every recipe builds, trains a step, compiles to one graph and exports; padding changes nothing."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from boxwright.config import NumClasses, Pretrained, build, set_tagged
from boxwright.ops.masks import pack
from boxwright.recipes import table
from boxwright.recipes.hrnet import high_resolution
from boxwright.structures import Batch, Detections, FeatureSpec, Targets, to_device

CLASSES = 3
RESNET = tuple(FeatureSpec(256 * 2**i, 4 * 2**i) for i in range(4))
QUICK = [
    "retinanet_r50_fpn_1x",
    "fcos_r50_fpn_1x",
    "faster_rcnn_r50_fpn_1x",
    "mask_rcnn_r50_fpn_1x",
    "fcos_mnv2_320",
    "ssd_mnv2_320",
    "gfl_mnv2_320",
    "yolov3_mnv2_320",
    "faster_rcnn_mnv2_320",
    "faster_rcnn_mdconv_mnv2_320",
    "rfcn_mnv2_320",
    "mask_rcnn_mnv2_320",
    "dynamic_rcnn_mnv2_320",
    "faster_rcnn_c4_mnv2_320",
    "htc_without_semantic_mnv2_320",
    "ga_retinanet_mnv2_320",
    "ga_faster_rcnn_mnv2_320",
]
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in table()]


def detector(name: str) -> nn.Module:
    """The recipe's detector with random weights and few classes, small enough for a test."""
    torch.manual_seed(0)
    config = table()[name]()
    set_tagged(config.model, Pretrained, None)
    set_tagged(config.model, NumClasses, CLASSES)
    model = build(config.model)
    for module in model.modules():  # untrained scores lie below every threshold
        postprocess = getattr(module, "postprocess", None)
        if postprocess is not None and postprocess.score_threshold is not None:
            module.postprocess = dataclasses.replace(postprocess, score_threshold=0.0)
    return model


def make_batch(counts: list[int], height: int = 64, width: int = 96, slots: int = 4, seed: int = 0) -> Batch:
    """Random images with that many objects each, boxes and masks."""
    generator = torch.Generator().manual_seed(seed)
    images = len(counts)
    corner = torch.rand(images, slots, 2, generator=generator) * torch.tensor([width - 40.0, height - 40.0])
    size = torch.randint(12, 36, (images, slots, 2), generator=generator)
    valid = torch.arange(slots) < torch.tensor(counts)[:, None]
    boxes = torch.cat((corner.floor(), corner.floor() + size), dim=-1) * valid[..., None]
    labels = torch.randint(0, CLASSES, (images, slots), generator=generator) * valid
    bitmaps = []
    for image, count in enumerate(counts):
        bitmap = torch.zeros(count, height, width, dtype=torch.uint8)
        for slot, (x1, y1, x2, y2) in enumerate(boxes[image, :count].int().tolist()):
            bitmap[slot, y1:y2, x1:x2] = 1
        bitmaps.append(bitmap)
    pixels = torch.randint(0, 256, (images, 3, height, width), generator=generator, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]]).repeat(images, 1)
    semantic = torch.randint(0, 100, (images, height, width), generator=generator, dtype=torch.uint8)
    targets = Targets(boxes, labels, valid, torch.zeros_like(valid), pack(bitmaps, slots), semantic)
    return Batch(pixels, sizes, targets, tuple(range(images)), sizes)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for key, value in losses.items() if key.startswith("loss/")]).sum()


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return detector(request.param)


@pytest.mark.parametrize("counts", [[3, 1], [0, 2], [0, 0]])
def test_losses_and_gradients_are_finite(model: nn.Module, counts: list[int]):
    model.train().zero_grad()
    losses = model(make_batch(counts))
    assert {key.split("/")[0] for key in losses} == {"loss", "stat"}
    total(losses).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    assert all(value.isfinite() for value in losses.values())


def test_the_loss_is_one_graph(model: nn.Module):
    torch._dynamo.reset()
    model.train()
    batch = make_batch([3, 1])
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    expected = model.loss(batch)
    torch.manual_seed(5)
    found = compiled(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_and_a_prediction_never_wait_for_the_host(model: nn.Module):
    device = torch.device("cuda")
    model.to(device).train()
    batch = to_device(make_batch([3, 1]), device)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            losses = model(batch)
        total(losses).backward()

    step()  # kernels are compiled and workspaces made
    with torch.no_grad():
        model.predict(batch.images, batch.sizes)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        with torch.no_grad():
            model.predict(batch.images, batch.sizes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.cpu()


class Prediction(nn.Module):
    """`predict` as a forward that returns tensors, which is what is exported."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        detections = self.model.predict(images, sizes)
        return [value for value in vars(detections).values() if value is not None]


def test_prediction_exports(model: nn.Module):
    model.eval()
    batch = make_batch([3, 1])
    program = torch.export.export(Prediction(model), (batch.images, batch.sizes))
    with torch.no_grad():
        found = program.module()(batch.images, batch.sizes)
        expected = Prediction(model)(batch.images, batch.sizes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def same(a: Detections, b: Detections, image: int) -> None:
    """The detections of one image of `a` are those of the only image of `b`, up to rounding."""
    count = int(b.valid[0].sum())
    assert int(a.valid[image].sum()) == count
    if not count:  # deep networks of random weights may be sure of the background
        return
    torch.testing.assert_close(a.scores[image, :count], b.scores[0, :count], rtol=1e-4, atol=1e-5)
    # Neighbours of nearly equal score may change places: compare where the scores are well apart.
    gap = (b.scores[0, 1:count] - b.scores[0, : count - 1]).abs() > 1e-4
    clear = torch.cat((gap.new_ones(1), gap)) & torch.cat((gap, gap.new_ones(1)))
    torch.testing.assert_close(a.boxes[image, :count][clear], b.boxes[0, :count][clear], rtol=1e-3, atol=1e-2)


def test_a_batch_gives_what_its_images_give_alone(model: nn.Module):
    model.eval()
    batch = make_batch([2, 1, 0])
    sizes = torch.tensor([[64, 96], [64, 80], [48, 96]])
    with torch.no_grad():
        together = model.predict(batch.images, sizes)
        for image in range(3):
            alone = model.predict(batch.images[image : image + 1], sizes[image : image + 1])
            same(together, alone, image)


def test_what_lies_in_the_padding_does_not_matter(model: nn.Module):
    model.eval()
    batch = make_batch([2])
    size = torch.tensor([[40, 70]])
    noise = batch.images.clone()
    noise[:, :, 40:] = 255
    noise[:, :, :, 70:] = 7
    with torch.no_grad():
        a, b = model.predict(batch.images, size), model.predict(noise, size)
    torch.testing.assert_close(vars(a), vars(b))
    assert (a.boxes[..., 2] <= 70).all()
    assert (a.boxes[..., 3] <= 40).all()


def test_empty_slots_change_no_loss(model: nn.Module):
    model.train()
    few, many = make_batch([2, 1], slots=2), make_batch([2, 1], slots=2)
    assert many.targets is not None
    assert many.targets.masks is not None

    def padded(value: Tensor) -> Tensor:
        return torch.cat((value, value.new_zeros(2, 5, *value.shape[2:])), dim=1)

    masks = many.targets.masks
    t = many.targets
    targets = Targets(
        *(padded(value) for value in (t.boxes, t.labels, t.valid, t.ignore)),
        dataclasses.replace(masks, boxes=padded(masks.boxes), offset=padded(masks.offset)),
        t.semantic,
    )
    sample_all(model)
    torch.testing.assert_close(
        model(few), model(dataclasses.replace(many, targets=targets)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["fcos_r50_fpn_1x", "retinanet_r50_fpn_1x", "faster_rcnn_r50_fpn_1x"])
def test_hrnet_in_any_recipe_leaves_the_strides_of_its_levels(name: str):
    changed = high_resolution(table()[name](), 18)
    set_tagged(changed.model, Pretrained, None)
    with torch.device("meta"):
        before, after = build(table()[name]().model.neck)(RESNET), build(changed.model)
    assert [s.stride for s in after.neck.specs] == [s.stride for s in before.specs]


def sample_all(model: nn.Module) -> None:
    """Take chance out of a detector: every prior and every proposal is trained."""
    for module in model.modules():
        for slot in ("criterion", "guidance"):
            part = getattr(module, slot, None)
            if part is not None and hasattr(part.sampler, "positive_share"):
                sampler = dataclasses.replace(part.sampler, number=1_000_000, positive_share=1.0)
                setattr(module, slot, dataclasses.replace(part, sampler=sampler))
