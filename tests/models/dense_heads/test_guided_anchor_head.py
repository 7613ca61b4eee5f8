"""The head of guided anchoring: what flows where, which anchors take part, how losses are divided."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from boxwright.models.assigners import ApproxMaxIoUAssigner, MaxIoUAssigner
from boxwright.models.coders import DeltaCoder, ShapeCoder
from boxwright.models.dense_heads import (
    DenseCriterion,
    DensePostprocess,
    Guidance,
    GuidedAnchorHead,
    GuidedPostprocess,
    GuidedPredictions,
)
from boxwright.models.losses import BoundedIoULoss, FocalLoss, SmoothL1
from boxwright.models.priors import Anchors
from boxwright.models.samplers import AllSampler
from boxwright.structures import FeatureSpec, Priors, Targets

SPECS = (FeatureSpec(8, 8), FeatureSpec(8, 16))
SHAPES, CANVAS = [(8, 12), (4, 6)], (64, 96)
PLACES = 8 * 12 + 4 * 6
RULE = MaxIoUAssigner(0.5, 0.4, match_low_quality=True)


def head(**settings) -> GuidedAnchorHead:
    torch.manual_seed(0)
    return GuidedAnchorHead(
        SPECS,
        num_classes=3,
        priors=Anchors(scales=(4.0,), ratios=(1.0,)),
        shape_coder=ShapeCoder(),
        guidance=Guidance(ApproxMaxIoUAssigner(RULE), AllSampler()),
        coder=DeltaCoder(),
        criterion=DenseCriterion(RULE, FocalLoss(), code_loss=SmoothL1()),
        postprocess=GuidedPostprocess(score_threshold=None, location_threshold=0.5),
        channels=8,
        **{"tower_convs": 1, **settings},
    )


def inputs() -> tuple[list[Tensor], Targets, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 8, *shape, generator=generator) for shape in SHAPES]
    boxes = torch.tensor([[[10.0, 10, 50, 40], [60, 20, 90, 60]], [[20, 20, 44, 52], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, True], [True, False]])
    targets = Targets(boxes, torch.tensor([[2, 0], [1, 0]]), valid, torch.zeros_like(valid))
    return features, targets, torch.tensor([[64, 96], [64, 96]])


def test_the_shape_gets_no_gradient_from_what_is_predicted_on_it():
    model = head()
    features, targets, sizes = inputs()
    losses = model.loss(model(features), model.place_priors(features, CANVAS), targets, sizes)
    (losses["loss/class"] + losses["loss/box"] + losses["loss/location"]).backward(retain_graph=True)
    assert model.shape_predictor.weight.grad is None
    losses["loss/shape"].backward()
    assert model.shape_predictor.weight.grad is not None
    assert model.shape_predictor.weight.grad.abs().sum() > 0
    for adaption in (model.class_adaption, model.box_adaption):
        assert adaption.offset.weight.grad is not None


@pytest.mark.parametrize("stem", [0, 1])
def test_without_towers_all_branches_share_the_features(stem: int):
    model = head(tower_convs=0, stem_convs=stem, predictor_kernel=1)
    assert model.box_adaption is None
    outputs = model(inputs()[0])
    assert outputs.class_logits.shape == (2, PLACES, 3)
    assert outputs.codes.shape == (2, PLACES, 4)
    assert outputs.shapes.shape == (2, PLACES, 2)
    assert outputs.location_logits.shape == (2, PLACES)


def test_guided_anchors_are_squares_in_their_predicted_shape():
    model = head()
    squares = model.priors(SHAPES, [8, 16], CANVAS)
    shapes = torch.zeros(2, PLACES, 2)
    shapes[1, 5] = torch.tensor([2.0, 0.5]).log()
    outputs = GuidedPredictions(
        torch.zeros(2, PLACES, 3),
        torch.zeros(2, PLACES, 4),
        location_logits=torch.zeros(2, PLACES),
        shapes=shapes,
    )
    anchors = model.anchors(outputs, squares).boxes
    torch.testing.assert_close(anchors[0], squares.boxes)
    # The place is (40, 0), its square has sides of 32 px.
    torch.testing.assert_close(anchors[1, 5], torch.tensor([8.0, -8, 72, 8]))


def predictions(likely: list[int]) -> GuidedPredictions:
    location = torch.full((2, PLACES), -3.0)
    location[0, likely] = 3.0
    generator = torch.Generator().manual_seed(2)
    scores = torch.randn(2, PLACES, 3, generator=generator)
    shapes = 0.3 * torch.randn(2, PLACES, 2, generator=generator)
    return GuidedPredictions(scores, torch.zeros(2, PLACES, 4), location_logits=location, shapes=shapes)


def test_only_anchors_at_likely_places_are_detected():
    model = head()
    squares = model.priors(SHAPES, [8, 16], CANVAS)
    sizes = inputs()[2]
    outputs = predictions([20, 50, 100])
    model.postprocess = replace(model.postprocess, max_detections=500)
    found = model.decode(outputs, squares, sizes)
    assert not found.valid[1].any()
    assert int(found.valid[0].sum()) == 9  # of one place there are three, one of each class
    anchors = model.anchors(outputs, squares).boxes[0, [20, 50, 100]].clamp(min=0)
    anchors = torch.minimum(anchors, torch.tensor([96.0, 64, 96, 64]))
    distance = (found.boxes[0, :9, None] - anchors).abs().amax(-1)
    assert distance.amin(1).max() < 1e-4
    assert distance.amin(0).max() < 1e-4
    # Another post-process takes its place, here one that does not ask for the location.
    every = model.decode(outputs, squares, sizes, DensePostprocess(score_threshold=None, max_detections=500))
    assert every.valid.sum() > 20


def test_candidates_are_pairs_and_boxes_beside_the_image_no_detections():
    """As in other dense heads; MMDetection's guided head counts places and keeps boxes of no width."""
    model = head()
    features, _, sizes = inputs()
    squares = model.place_priors(features, CANVAS)
    blank = model(features)
    outputs = replace(
        blank,
        class_logits=torch.full_like(blank.class_logits, -9.0).index_fill(1, torch.tensor([0, 50]), 2.0),
        codes=torch.zeros_like(blank.codes),
        location_logits=torch.full_like(blank.location_logits, 5.0),
        shapes=torch.zeros_like(blank.shapes),
    )
    settings = GuidedPostprocess(score_threshold=0.5, max_detections=20)
    assert model.decode(outputs, squares, sizes, settings).valid.sum(1).tolist() == [6, 6]
    two = model.decode(outputs, squares, sizes, replace(settings, candidates=2))
    assert two.valid.sum(1).tolist() == [2, 2]
    outputs.codes[:, 0, 0] = -3.0  # three widths to the left of the image
    found = model.decode(outputs, squares, sizes, settings)
    assert found.valid.sum(1).tolist() == [3, 3]
    assert (found.boxes[found.valid][:, 2] > 0).all()


def test_losses_are_divided_as_written():
    """Locations by a share of all places, where negatives weigh a tenth; shapes by the sampled squares."""
    model = head()
    features, targets, _ = inputs()
    squares = model.place_priors(features, CANVAS)
    outputs = model(features)
    losses = model.guidance(outputs, squares, targets, model.shape_coder)

    regions = model.guidance.regions(squares, targets)
    logits = outputs.location_logits
    probability = logits.sigmoid()
    centre = -0.25 * (1 - probability) ** 2 * F.logsigmoid(logits)
    other = -0.75 * probability**2 * F.logsigmoid(-logits)
    summed = centre[regions.positive].sum() + 0.1 * other[regions.negative].sum()
    assert regions.positive.any()
    assert regions.ignore.any()
    torch.testing.assert_close(losses["loss/location"], summed / (2 * PLACES / 200))

    shapes = model.guidance.shape_assigner(squares, targets)
    boxes = model.shape_coder.decode(outputs.shapes, squares.boxes)[shapes.positive]
    truth = targets.boxes.gather(1, shapes.gt_index[..., None].expand(-1, -1, 4))[shapes.positive]
    expected = BoundedIoULoss()(boxes, truth).sum() / (shapes.positive | shapes.negative).sum()
    torch.testing.assert_close(losses["loss/shape"], expected)


def test_squares_beside_the_image_are_not_trained_but_their_locations_are():
    model = head()
    features, targets, _ = inputs()
    squares = model.place_priors(features, CANVAS)
    trainable = model.guidance.trainable(squares, torch.tensor([[32, 64], [64, 96]]))
    assert isinstance(trainable, Priors)
    assert trainable.valid is not None
    assert trainable.valid.sum(1).tolist() == [4 * 8 + 2 * 4, PLACES]
    outputs = model(features)
    part = model.guidance(outputs, trainable, targets, model.shape_coder)
    whole = model.guidance(outputs, squares, targets, model.shape_coder)
    torch.testing.assert_close(part["loss/location"], whole["loss/location"])
    assert not torch.equal(part["loss/shape"], whole["loss/shape"])


def test_more_than_one_prior_a_place_is_an_error():
    with pytest.raises(ValueError, match="one square a place"):
        GuidedAnchorHead(
            SPECS,
            num_classes=3,
            priors=Anchors(),
            shape_coder=ShapeCoder(),
            guidance=Guidance(RULE, AllSampler()),
            coder=DeltaCoder(),
            criterion=DenseCriterion(RULE, FocalLoss()),
            postprocess=GuidedPostprocess(),
        )


def test_shape_codes_are_logarithms_of_size_ratios():
    priors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    boxes = torch.tensor([[-5.0, 2.5, 15, 7.5], [25, 10, 35, 50]])
    coder = ShapeCoder(stds=(0.14, 0.2))
    codes = coder.encode(boxes, priors)
    ratios = torch.tensor([[2.0, 0.5], [0.5, 2.0]])
    torch.testing.assert_close(codes, ratios.log() / torch.tensor([0.14, 0.2]))
    torch.testing.assert_close(coder.decode(codes, priors), boxes)
    assert coder.encode(torch.zeros(2, 4), priors).isfinite().all()
    assert coder.decode(torch.full((2, 2), 1e4), priors).isfinite().all()
    # Priors that the images share, codes of each image.
    assert coder.decode(codes.expand(3, 2, 2), priors).shape == (3, 2, 4)
