"""A training step of many devices on paper: what each computes, and what the exchange of gradients adds.

Each device computes a forward and a backward pass. Gradients become ready during the backward pass, last
layer first; DistributedDataParallel sends them in buckets, one after the other, while the rest of the
backward pass goes on (Li et al., PyTorch Distributed, arXiv:2006.15704, Sec. 3.2). A step ends when the
slowest device has computed, the last bucket is summed, and the weights are updated. Nothing runs on a device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from statistics import NormalDist

MIB = 2**20


@dataclass(frozen=True)
class Assumptions:
    """Everything that the model takes for granted. Nothing is fitted to a published figure.

    Args:
        devices_per_node: devices that share a machine and its network link.
        inner_bandwidth: bytes a second from device to device within a node, each way.
        outer_bandwidth: bytes a second of a node's network link, each way.
        inner_latency: seconds of one message within a node.
        outer_latency: seconds of one message between nodes.
        hierarchical: whether a sum is made within each node first; otherwise in one ring of all devices.
        first_bucket: bytes at which the first bucket of gradients is sent (PyTorch's default).
        bucket: bytes of the others (PyTorch's default).
        bytes_per_value: of a gradient on the wire: 4 in float32, 2 with compression to 16 bits.
        overlap: whether buckets are sent while the backward pass goes on.
        spread: standard deviation of a device's computing time from step to step, as a share of it; all wait
            for the slowest.
    """

    devices_per_node: int = 8
    inner_bandwidth: float = 50e9
    outer_bandwidth: float = 12.5e9
    inner_latency: float = 5e-6
    outer_latency: float = 20e-6
    hierarchical: bool = True
    first_bucket: int = MIB
    bucket: int = 25 * MIB
    bytes_per_value: int = 4
    overlap: bool = True
    spread: float = 0.05


@dataclass(frozen=True)
class Bucket:
    """Gradients that are summed in one go.

    Args:
        values: how many numbers.
        ready: share of the backward pass that is done when the last of them is there.
    """

    values: int
    ready: float


@dataclass(frozen=True)
class Work:
    """What one device does in a step by itself.

    Args:
        images: a step.
        forward: seconds.
        backward: seconds.
        update: seconds of the optimiser.
        buckets: in the order in which they are sent.
        norms: channels of each normalisation whose statistics all devices share; empty where none does.
    """

    images: int
    forward: float
    backward: float
    update: float
    buckets: tuple[Bucket, ...]
    norms: tuple[int, ...] = ()

    @property
    def seconds(self) -> float:
        """The step of a device alone."""
        return self.forward + self.backward + self.update

    def taking(self, seconds: float) -> Work:
        """The same work on a device that needs so many seconds for it, in the same shares."""
        scale = seconds / self.seconds
        return replace(
            self,
            forward=self.forward * scale,
            backward=self.backward * scale,
            update=self.update * scale,
        )


def group(gradients: Iterable[tuple[int, float]], first: int, cap: int) -> tuple[Bucket, ...]:
    """Gradients in buckets: one is closed as soon as it has reached its size.

    Args:
        gradients: how many float32 values, and when they are ready; in the order in which they become ready.
        first: bytes of the first bucket.
        cap: bytes of the others.
    """
    made: list[Bucket] = []
    values, ready = 0, 0.0
    for count, time in gradients:
        values, ready = values + count, max(ready, time)
        if 4 * values >= (cap if made else first):
            made.append(Bucket(values, ready))
            values = 0
    return (*made, Bucket(values, ready)) if values else tuple(made)


def ring(size: float, devices: int, bandwidth: float, latency: float) -> float:
    """Seconds in which a ring sums `size` bytes: 2 (n-1) messages of size / n each."""
    return 2 * (devices - 1) * (size / devices / bandwidth + latency)


def all_reduce(size: float, devices: int, assumed: Assumptions) -> float:
    """Seconds in which all devices have the sum of `size` bytes.

    Hierarchical: each device of a node gathers a share of the node's sum, the shares are summed between
    nodes, all at the same time through the node's one link, and are handed around within the node. The first
    and the last act are the two halves of a ring within the node.
    """
    inside = min(devices, assumed.devices_per_node)
    nodes = math.ceil(devices / assumed.devices_per_node)
    within = ring(size, inside, assumed.inner_bandwidth, assumed.inner_latency)
    if nodes == 1:
        return within
    if not assumed.hierarchical:
        return ring(size, devices, assumed.outer_bandwidth, assumed.outer_latency)
    return within + ring(size, nodes, assumed.outer_bandwidth, assumed.outer_latency)


def slowest(devices: int) -> float:
    """Standard deviations by which the slowest of so many devices is expected to exceed the mean.

    Blom's approximation of the largest of n normal variables (Statistical Estimates and Transformed
    Beta-Variables, 1958): the quantile at (n - 3/8) / (n + 1/4).
    """
    return NormalDist().inv_cdf((devices - 0.375) / (devices + 0.25))


def step_seconds(work: Work, devices: int, assumed: Assumptions) -> float:
    """Seconds of one step of all devices together."""
    wait = 1 + assumed.spread * slowest(devices)
    # Shared norms stand still for an all-reduce each way: sum, sum of squares and count; then two sums.
    norms = sum(
        all_reduce((2 * channels + 1) * 4, devices, assumed) + all_reduce(2 * channels * 4, devices, assumed)
        for channels in work.norms
    )
    start, computed = wait * work.forward, wait * (work.forward + work.backward)
    sent = 0.0
    for bucket in work.buckets:
        ready = start + wait * work.backward * bucket.ready if assumed.overlap else computed
        size = bucket.values * assumed.bytes_per_value
        sent = max(sent, ready) + all_reduce(size, devices, assumed)
    return max(computed, sent) + norms + work.update


def images_per_second(work: Work, devices: int, assumed: Assumptions) -> float:
    """Images of all devices together."""
    return devices * work.images / step_seconds(work, devices, assumed)


def efficiency(work: Work, devices: int, assumed: Assumptions, base: int = 1) -> float:
    """Images a second of each device, as a share of what each does in a run of `base` devices."""
    return step_seconds(work, base, assumed) / step_seconds(work, devices, assumed)


def gradient_bytes(work: Work, assumed: Assumptions) -> int:
    """Bytes that each device hands over for summing in a step."""
    return sum(bucket.values for bucket in work.buckets) * assumed.bytes_per_value


def listed(assumed: Assumptions) -> list[tuple[str, object, str]]:
    """Name, value and meaning of each assumption; meanings are those of the docstring."""
    meanings: dict[str, str] = {}
    name = ""
    for line in (Assumptions.__doc__ or "").partition("Args:")[2].splitlines():
        head, colon, rest = line.strip().partition(": ")
        if colon and hasattr(assumed, head):
            name, meanings[head] = head, rest
        elif line.strip():
            meanings[name] += f" {line.strip()}"
    return [(f.name, getattr(assumed, f.name), meanings[f.name]) for f in fields(Assumptions)]
