"""What an argument's value may be beyond its type, said in its annotation.

`boxwright.config` keeps to it wherever a value is set, read or built, and names the path of what breaks it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any


@dataclass(frozen=True)
class Rule:
    """Stands in a `typing.Annotated`, behind the type.

    Args:
        words: what the value has to be, as "takes ..." goes on in a message.
        holds: whether a value of the type is that.
    """

    words: str
    holds: Callable[[Any], bool] = field(repr=False)


Count = Annotated[int, Rule("a whole number from 1 on", lambda number: number >= 1)]
Amount = Annotated[int, Rule("a whole number from 0 on", lambda number: number >= 0)]
OddCount = Annotated[
    int, Rule("an odd whole number from 1 on", lambda number: number >= 1 and number % 2 == 1)
]
Positive = Annotated[float, Rule("a number above 0", lambda number: number > 0)]
Share = Annotated[float, Rule("a number from 0 to 1", lambda number: 0 <= number <= 1)]
AllPositive = Annotated[tuple[Positive, ...], Rule("one or more numbers above 0", bool)]
