"""Average-linkage clustering of weighted points, and the silhouette. Exact, deterministic, and in numpy alone.

scikit-learn has both, the clustering without weights, and the tests compare with it. It is no dependency of the
package, because a single command needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Merge:
    """Two clusters become one. A cluster has the number of its least point; `a` < `b`, so the result is `a`."""

    a: int
    b: int
    height: float
    """Mean distance between the points of the two clusters."""


def average_linkage(distance: Floats, weight: Floats) -> list[Merge]:
    """All n - 1 merges, lowest first (UPGMA by nearest-neighbour chains: O(n^2) time).

    Args:
        distance: [n, n], symmetric.
        weight: [n], the number of equal points that each point represents.
    """
    n = len(weight)
    work = distance.astype(np.float64, copy=True)
    np.fill_diagonal(work, np.inf)
    size = weight.astype(np.float64, copy=True)
    alive = np.ones(n, dtype=bool)
    merges: list[Merge] = []
    chain: list[int] = []
    while len(merges) < n - 1:
        if not chain:
            chain.append(int(np.flatnonzero(alive)[0]))
        here = chain[-1]
        near = int(np.argmin(work[here]))  # ties: the least index
        if len(chain) > 1 and work[here, chain[-2]] <= work[here, near]:
            near = chain[-2]  # at a tie go back, or the chain would go in a circle
        if len(chain) < 2 or near != chain[-2]:
            chain.append(near)
            continue
        del chain[-2:]
        a, b = min(here, near), max(here, near)
        merges.append(Merge(a, b, float(work[a, b])))
        row = (size[a] * work[a] + size[b] * work[b]) / (size[a] + size[b])
        work[a], work[:, a] = row, row
        work[b], work[:, b], work[a, a] = np.inf, np.inf, np.inf
        size[a] += size[b]
        alive[b] = False
    return sorted(merges, key=lambda merge: merge.height)  # a stable sort: a child stays before its parent


class _Forest:
    """Union-find over the points; a tree's root is its least point."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def root(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]  # halves the path for the next search
            i = parent[i]
        return i

    def join(self, merge: Merge) -> tuple[int, int]:
        """(root of both from now on, root that it replaces): the lesser root stays."""
        a, b = sorted((self.root(merge.a), self.root(merge.b)))
        self._parent[b] = a
        return a, b


def cut(merges: Sequence[Merge], n: int, clusters: int) -> Ints:
    """[n] cluster of each point with `clusters` clusters left, numbered from 0 in the order of their least points."""
    if not 1 <= clusters <= n:
        raise ValueError(f"{clusters} clusters of {n} points")
    forest = _Forest(n)
    for merge in merges[: n - clusters]:
        forest.join(merge)
    roots = [forest.root(i) for i in range(n)]
    number = {value: index for index, value in enumerate(sorted(set(roots)))}
    return np.array([number[value] for value in roots], dtype=np.int64)


def coarsest_cuts(merges: Sequence[Merge], weight: Floats, least: float) -> dict[int, int]:
    """Number of large clusters (weight >= `least`) -> least argument `clusters` of `cut` that gives this number."""
    forest, size = _Forest(len(weight)), weight.tolist()
    large = sum(value >= least for value in size)
    cuts = {large: len(size)}
    for done, merge in enumerate(merges, start=1):
        a, b = forest.join(merge)
        before = (size[a] >= least) + (size[b] >= least)
        size[a] += size[b]
        large += (size[a] >= least) - before
        cuts[large] = len(size) - done
    return cuts


def silhouette(distance: Floats, cluster: Ints) -> float:
    """Mean silhouette in [-1, 1] of n points; 0 with one cluster. `cluster` [n] numbers them 0, 1, ...

    (b - a) / max(a, b) with a the mean distance to the rest of the own cluster, b to the nearest other one. A
    point alone in its cluster counts as 0 (Rousseeuw 1987).
    """
    count = int(cluster.max()) + 1
    if count < 2:
        return 0.0
    rows = np.arange(len(cluster))
    member = np.zeros((len(cluster), count))
    member[rows, cluster] = 1
    size = member.sum(axis=0)
    sums = distance @ member
    own = size[cluster]
    a = sums[rows, cluster] / np.maximum(own - 1, 1)
    means = sums / size
    means[rows, cluster] = np.inf
    b = means.min(axis=1)
    most = np.maximum(a, b)
    return float(np.where((own > 1) & (most > 0), (b - a) / np.where(most > 0, most, 1), 0.0).mean())
