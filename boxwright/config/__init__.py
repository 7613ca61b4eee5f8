"""Configuration: a recipe describes ordinary constructor calls; these functions read and change it.

A recipe returns a `fiddle.Config`. `apply_overrides` sets values by path, `set_tagged` sets one thing
everywhere, `flatten`, `history` and `diff` show what a configuration says, `to_json` and `from_json` keep
it beside the checkpoints, and `build` makes the objects.
"""

from .tags import Norm, NumClasses, Pretrained

__all__ = ["Norm", "NumClasses", "Pretrained"]
