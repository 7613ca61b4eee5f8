"""Tags: names for arguments that mean the same wherever they stand in a configuration.

A constructor marks an argument with `typing.Annotated[int, NumClasses]`, or a recipe with
`fiddle.add_tag(config.model.head, "num_classes", NumClasses)`; `set_tagged` then sets all of them.
"""

import fiddle as fdl


class NumClasses(fdl.Tag):
    """Number of classes C of the data set, without background. Set from the label map before training."""


class ClassAgnostic(fdl.Tag):
    """True where a detector finds objects without saying of which class: it needs no number of classes."""


class Norm(fdl.Tag):
    """Normalisation layer: a callable `norm(channels) -> nn.Module`, or None for none."""


class Conv(fdl.Tag):
    """Convolution layer: a callable that is called as `nn.Conv2d` is."""


class Pretrained(fdl.Tag):
    """Weights that a part is initialised from. Set to None where a checkpoint follows anyway."""
