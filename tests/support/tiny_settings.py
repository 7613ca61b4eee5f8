"""Words of the command line that make the detector of a small recipe one that trains in seconds."""

TINY = [
    "model.backbone.name=mobilenetv3_small_050",
    "model.backbone.weights=None",
    "model.neck.out_channels=8",
    "train_transforms.1.short=64",
    "train_transforms.1.long=64",
    "eval_transforms.0.short=64",
    "eval_transforms.0.long=64",
    "canvas.shapes=((64,64),)",
    "workers=0",
    "precision=fp32",
]
"""For recipes at 320 pixels with a network of timm and a feature pyramid."""

TINY_DENSE = [*TINY, "model.head.channels=8", "model.head.tower_convs=1", "model.head.norm=None"]
"""For those of them with a `DenseHead` alone."""
