"""Asynchronous training with a parameter server, on Ray actors (extra `ray`).

Workers compute gradients, each at its own pace; a server applies them in the order in which they arrive, so
that most were computed with weights a few versions old. How old is counted and logged. Synchronous training
(`boxwright.train` under `torchrun`) needs no such care; this mode is for devices of unequal speed or that
come and go, and for repeating what was trained so (the trade-offs study, arXiv:1611.10012).
"""

from .run import train

__all__ = ["train"]
