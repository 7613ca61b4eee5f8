"""COCO's counting of right and wrong detections (Lin et al., arXiv:1405.0312), all images at once.

The protocol is that of pycocotools, which tests hold this to:

- In each image and class, detections in decreasing order of score each take the free object of largest
  overlap, if that reaches the threshold. Objects that count come before those that do not (crowd regions, and
  objects outside of the range of areas); a crowd region is never used up. Of equal overlaps the later
  annotation is taken.
- A detection of an object that does not count, and one of no object whose own area is out of range, are
  neither right nor wrong.
- Precision is made non-increasing from the right and read off at 101 recalls.

Images do not depend on each other, nor do the 10 overlaps and 4 ranges of areas. So the n-th choice of every
image and class is made in one go, for all 40 settings as the bits of one integer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .columns import Found, Truth

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = np.array([[0.0, 1e10], [0.0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])
"""All, small, medium, large: square pixels, both ends included."""

_T, _ROW = len(OVERLAPS), (1 << len(OVERLAPS)) - 1
_EVERY_AREA = sum(1 << (_T * a) for a in range(len(AREAS)))  # one row of bits, repeated for each range
_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Counts:
    """Arrays over overlap T, recall R, class K, range of areas A, limit of detections M; -1 where undefined.

    Args:
        precision: `(T, R, K, A, M)`.
        recall: `(T, K, A, M)`, the largest that is reached.
        scores: `(T, R, K, A, M)`, of the detection that reaches that recall; 0 where none does.
    """

    precision: np.ndarray
    recall: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class _Sorted:
    """Detections and objects by class and image; detections then by score, objects as annotated.

    Args:
        group: `(n,)` class and image of each detection, as one number.
        rank: `(n,)` place among the detections of its group.
        first: `(n,)` where the objects of its group begin.
        count: `(n,)` how many those are.
        detections: `(n,)` place in `Found`.
        objects: `(m,)` place in `Truth`.
    """

    group: np.ndarray
    rank: np.ndarray
    first: np.ndarray
    count: np.ndarray
    detections: np.ndarray
    objects: np.ndarray


def count_detections(truth: Truth, found: Found, limits: Sequence[int], by_class: bool = True) -> Counts:
    """Precision and recall of detections.

    Args:
        truth: the annotated objects.
        found: detections of images and categories that `truth` knows; with masks, these are compared.
        limits: detections taken of each image and class, in increasing order.
        by_class: False to take all categories for one (K is 1 then).
    """
    number = len(truth.image_ids)

    def class_of(categories: np.ndarray) -> np.ndarray:
        return np.searchsorted(truth.category_ids, categories) if by_class else np.zeros_like(categories)

    def group_of(images: np.ndarray, categories: np.ndarray) -> np.ndarray:
        return class_of(categories) * number + np.searchsorted(truth.image_ids, images)

    ordered = _sort(
        truth,
        found,
        group_of(truth.images, truth.categories),
        group_of(found.images, found.categories),
        limits[-1],
        by_class,
    )
    counted = _in_range(truth.areas) & ~truth.crowd[:, None]
    regular, single = _bits(counted)[ordered.objects], np.where(truth.crowd, 0, -1)[ordered.objects]
    matched, right = _match(ordered, *_candidates(ordered, truth, found), regular, single)
    wrong = ~matched & _bits(_in_range(_areas(found)))[ordered.detections]
    classes = len(truth.category_ids) if by_class else 1
    objects = np.stack([np.bincount(class_of(truth.categories)[c], minlength=classes) for c in counted.T], 1)
    edges = np.searchsorted(ordered.group, np.arange(classes + 1) * number)
    return _accumulate(found.scores[ordered.detections], ordered.rank, right, wrong, edges, objects, limits)


def _sort(
    truth: Truth, found: Found, object_group: np.ndarray, found_group: np.ndarray, limit: int, by_class: bool
) -> _Sorted:
    # Where classes are taken for one, their order decides among equal scores and overlaps.
    objects = np.lexsort((truth.categories, object_group))
    ties = () if by_class else (found.categories,)
    detections = np.lexsort((*ties, -found.scores, found_group))
    rank = _rank(found_group[detections])
    kept = rank < limit
    detections, rank = detections[kept], rank[kept]
    group = found_group[detections]
    first = np.searchsorted(object_group[objects], group, "left")
    count = np.searchsorted(object_group[objects], group, "right") - first
    return _Sorted(group, rank, first, count, detections, objects)


def _rank(group: np.ndarray) -> np.ndarray:
    """Place of each element in its run of equal numbers."""
    places = np.arange(len(group))
    return places - np.maximum.accumulate(np.where(np.diff(group, prepend=-1) != 0, places, 0))


def _in_range(areas: np.ndarray) -> np.ndarray:
    """`(n, A)` bool."""
    return (areas[:, None] >= AREAS[:, 0]) & (areas[:, None] <= AREAS[:, 1])


def _bits(ranges: np.ndarray) -> np.ndarray:
    """`(n, A)` bool as integers that have the bits of all overlaps set for the ranges that hold."""
    return ranges @ (_ROW << (_T * np.arange(len(AREAS), dtype=np.int64)))


def _areas(found: Found) -> np.ndarray:
    if found.masks is None:
        return found.boxes[:, 2] * found.boxes[:, 3]
    from faster_coco_eval.core import mask

    return np.array(mask.area(list(found.masks)) if found.masks else [], dtype=np.float64)


def _candidates(s: _Sorted, truth: Truth, found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs that reach the lowest overlap: places of detection and object in `s`, and the overlap."""
    overlaps = _mask_overlaps if found.masks else _box_overlaps
    parts = []
    for d, o in _pairs(s):
        overlap = overlaps(s, d, o, truth, found)
        near = overlap >= OVERLAPS[0]
        parts.append((d[near], o[near], overlap[near]))
    columns = zip(*parts, strict=True) if parts else ([np.zeros(0, dtype=np.int64)],) * 2 + ([np.zeros(0)],)
    d, o, overlap = (np.concatenate(column) for column in columns)
    return d, o, overlap


def _pairs(s: _Sorted) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each detection with each object of its group, in parts that fit the memory."""
    block = np.cumsum(s.count) // _PAIRS_AT_ONCE
    edges = np.flatnonzero(np.diff(block, prepend=-1, append=-1))
    for start, stop in pairwise(edges.tolist()):
        count = s.count[start:stop]
        d = np.repeat(np.arange(start, stop), count)
        before = np.cumsum(count) - count
        yield d, np.arange(len(d)) + np.repeat(s.first[start:stop] - before, count)


def _box_overlaps(s: _Sorted, d: np.ndarray, o: np.ndarray, truth: Truth, found: Found) -> np.ndarray:
    """IoU of boxes; with a crowd region, the share of the detection that lies in it."""
    one, two = found.boxes[s.detections[d]].T, truth.boxes[s.objects[o]].T
    width = np.minimum(one[0] + one[2], two[0] + two[2]) - np.maximum(one[0], two[0])
    height = np.minimum(one[1] + one[3], two[1] + two[3]) - np.maximum(one[1], two[1])
    meet = (width > 0) & (height > 0)
    shared, area = width * height, one[2] * one[3]
    union = np.where(truth.crowd[s.objects[o]], area, area + two[2] * two[3] - shared)
    return np.divide(shared, union, out=np.zeros(len(d)), where=meet)


def _mask_overlaps(s: _Sorted, d: np.ndarray, o: np.ndarray, truth: Truth, found: Found) -> np.ndarray:
    """The same of masks, group by group."""
    from faster_coco_eval.core import mask

    assert found.masks is not None
    assert truth.masks is not None
    overlap = np.zeros(len(d))
    edges = np.flatnonzero(np.diff(s.group[d], prepend=-1, append=-1))
    for start, stop in pairwise(edges.tolist()):
        rows, columns = s.detections[d[start] : d[stop - 1] + 1], s.objects[o[start] : o[stop - 1] + 1]
        first, second = [found.masks[i] for i in rows], [truth.masks[j] for j in columns]
        crowd = truth.crowd[columns].astype(int).tolist()
        overlap[start:stop] = np.asarray(mask.iou(first, second, crowd)).ravel()
    return overlap


def _match(
    s: _Sorted, d: np.ndarray, o: np.ndarray, overlap: np.ndarray, regular: np.ndarray, single: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which detections take an object, and which of them one that counts: bits of each, `(n,)` int64.

    Args:
        s: detections and objects.
        d: detection of each candidate.
        o: its object.
        overlap: of the two.
        regular: `(m,)` bits of the settings in which an object counts.
        single: `(m,)` all bits where an object can be taken once, 0 for crowd regions.
    """
    best = np.lexsort((-o, -overlap, d))
    d, o = d[best], o[best]
    reached = ((1 << np.searchsorted(OVERLAPS, overlap[best], "right")) - 1) * _EVERY_AREA
    # Each detection goes through the objects that count, then through the others.
    turns = np.argsort(np.concatenate((2 * d, 2 * d + 1)), kind="stable")
    counts = turns < len(d)
    d, o, reached = d[turns % len(d)], o[turns % len(d)], reached[turns % len(d)]
    wanted = reached & np.where(counts, regular[o], ~regular[o])
    matched, right = np.zeros(len(s.group), dtype=np.int64), np.zeros(len(s.group), dtype=np.int64)
    taken = np.zeros(len(regular), dtype=np.int64)
    some = wanted != 0
    d, o, wanted, counts = d[some], o[some], wanted[some], counts[some]
    turn = _rank(s.group[d])  # of the choices of one group; those with the same number are made together
    order = np.argsort(turn, kind="stable")
    d, o, wanted, counts = d[order], o[order], wanted[order], counts[order]
    edges = np.searchsorted(turn[order], np.arange(turn.max(initial=-1) + 2))
    for part in (slice(start, stop) for start, stop in pairwise(edges.tolist())):
        i, j = d[part], o[part]
        takes = wanted[part] & ~matched[i] & ~taken[j]
        matched[i] |= takes
        taken[j] |= takes & single[j]
        right[i] |= np.where(counts[part], takes, 0)
    return matched, right


def _accumulate(
    scores: np.ndarray,
    rank: np.ndarray,
    right: np.ndarray,
    wrong: np.ndarray,
    edges: np.ndarray,
    objects: np.ndarray,
    limits: Sequence[int],
) -> Counts:
    """Precision over recall.

    Args:
        scores: `(n,)` of the detections, class by class.
        rank: `(n,)` place in its image and class.
        right: `(n,)` bits of the settings in which it finds an object.
        wrong: `(n,)` bits of the settings in which it is a false alarm.
        edges: `(K + 1,)` where the detections of each class begin.
        objects: `(K, A)` objects to be found.
        limits: detections taken of each image and class.
    """
    shape = (len(objects), len(AREAS), len(limits))
    precision, score = (np.full((_T, len(RECALLS), *shape), -1.0) for _ in range(2))
    recall = np.full((_T, *shape), -1.0)
    for k, (start, stop) in enumerate(pairwise(edges.tolist())):
        order = start + np.argsort(-scores[start:stop], kind="stable")
        for m, limit in enumerate(limits):
            taken = order[rank[order] < limit]
            for a in np.flatnonzero(objects[k]).tolist():
                hits, alarms = _unpack(right[taken], a), _unpack(wrong[taken], a)
                curve = _curve(hits, alarms, scores[taken], int(objects[k, a]))
                precision[:, :, k, a, m], recall[:, k, a, m], score[:, :, k, a, m] = curve
    return Counts(precision, recall, score)


def _unpack(bits: np.ndarray, area: int) -> np.ndarray:
    """`(T, n)` bool, the bits of one range of areas."""
    return (bits >> (_T * area + np.arange(_T)[:, None])) & 1 != 0


def _curve(
    hits: np.ndarray, alarms: np.ndarray, scores: np.ndarray, objects: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision `(T, R)`, largest recall `(T,)`, scores `(T, R)` of detections in decreasing order of score.

    Precision can be largest only where an object is found; so of each row only its hits are looked at.
    """
    found = hits.sum(axis=1)
    row, place = np.nonzero(hits)
    number = np.arange(1, len(row) + 1) - np.repeat(np.cumsum(found) - found, found)
    precision, score = np.zeros((_T, objects + 1)), np.zeros((_T, objects + 1))
    precision[row, number] = number / (number + np.cumsum(alarms, axis=1)[row, place])
    score[row, number] = scores[place]
    score[:, 0] = scores[0] if len(scores) else 0.0
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    needed = np.searchsorted(np.arange(objects + 1) / objects, RECALLS)  # hits that reach each recall
    return precision[:, needed], found / objects, score[:, needed]
