"""Configuration: a recipe describes ordinary constructor calls; these functions read and change it.

A recipe returns a `fiddle.Config`. `apply_overrides` sets values by path, `set_tagged` sets one thing
everywhere, `flatten`, `history` and `diff` show what a configuration says, `to_json` and `from_json` keep
it beside the checkpoints, and `build` makes the objects.
"""

from .describe import Call, diff, flatten, history, named_modules, shown
from .files import build, clone, from_json, read_config, to_json
from .overrides import apply_overrides, check_values, set_tagged
from .tags import ClassAgnostic, Conv, Norm, NumClasses, Pretrained

__all__ = [
    "Call",
    "ClassAgnostic",
    "Conv",
    "Norm",
    "NumClasses",
    "Pretrained",
    "apply_overrides",
    "build",
    "check_values",
    "clone",
    "diff",
    "flatten",
    "from_json",
    "history",
    "named_modules",
    "read_config",
    "set_tagged",
    "shown",
    "to_json",
]
