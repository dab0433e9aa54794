"""One tree that forgets exactly (DaRE: Brophy & Lowd, ICML 2021, "Machine Unlearning for Random Forests").

A node tries floor(sqrt d) attributes with k valid thresholds each, statistics cached; the upper `random_depth` levels split at
random. Rows are removed by updating the counts on their path and regrowing a subtree only where another split becomes the best.
Every choice is the lowest of keyed hashes of (the tree's key, path, attribute, value on the threshold's left), never the next
number of a stream: what a node chooses is a function of its key and its rows alone. So a tree after `remove` is, node for node
and bit for bit, the tree that `grow` makes of the remaining rows.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Criterion = Literal["gini", "entropy"]


def mix(key: int, words: np.ndarray) -> np.ndarray:
    """Hashes (n,) uint64 of words (n,) uint64 under a 64-bit key: two rounds of splitmix64's finaliser."""
    hashed = words * np.uint64(0x9E3779B97F4A7C15)
    for _ in range(2):
        hashed = hashed + np.uint64(key)
        hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashed ^= hashed >> np.uint64(31)
    return hashed


def mix_one(key: int, word: int) -> int:
    """The hash of one word."""
    return int(mix(key, np.array([word], np.uint64))[0])


@dataclass
class Column:
    """One attribute at one node: its distinct values in order, how many rows and positive rows have each, and each one's rank.

    Threshold j lies between values j and j + 1 and ranks as values[j]. It is valid if the rows of the two values are not all of
    one label. `chosen` (3, <= k) holds the valid thresholds of lowest rank: values[j], rows and positive rows on its left.
    """

    feature: int
    values: list[float]
    total: list[int]
    ones: list[int]
    ranks: list[int]
    chosen: np.ndarray = field(default_factory=lambda: np.empty((3, 0)))
    last_rank: float = math.inf  # a threshold beyond it cannot be chosen

    def choose(self, k: int) -> None:
        """Choose the thresholds anew."""
        total, ones, ranks = np.array(self.total), np.array(self.ones), np.array(self.ranks, np.uint64)
        label = np.where(ones == 0, 0, np.where(ones == total, 1, 2))
        valid = np.flatnonzero((label[:-1] != label[1:]) | (label[:-1] == 2))
        self.last_rank = math.inf
        if len(valid) > k:
            valid = valid[np.argsort(ranks[valid], kind="stable")[:k]]
            self.last_rank = self.ranks[valid[-1]]
            valid.sort()
        self.chosen = np.stack([np.array(self.values)[valid], total.cumsum()[valid], ones.cumsum()[valid]])

    def remove(self, value: float, label: int) -> bool:
        """Take one row out; True if the thresholds must be chosen anew."""
        i = bisect_left(self.values, value)
        first = self.chosen[0].searchsorted(value)
        self.chosen[1, first:] -= 1
        self.chosen[2, first:] -= label
        near = [j for j in (i - 1, i) if 0 <= j < len(self.values) - 1 and self.ranks[j] <= self.last_rank]
        before = [self.ranks[j] for j in near if self._valid(j)]
        self.total[i] -= 1
        self.ones[i] -= label
        if not self.total[i]:
            del self.values[i], self.total[i], self.ones[i], self.ranks[i]
            near = [j for j in near if j < i and j < len(self.values) - 1]
        return before != [self.ranks[j] for j in near if self._valid(j)]

    def _valid(self, j: int) -> bool:
        return 0 < self.ones[j] + self.ones[j + 1] < self.total[j] + self.total[j + 1]


@dataclass
class Node:
    """A leaf if it has no left child. `rows` are positions of a leaf's rows; `columns` are made when first needed."""

    key: int
    depth: int
    total: int
    ones: int
    rows: np.ndarray | None = None
    columns: list[Column] | None = None
    feature: int = -1
    threshold: float = 0.0
    left: "Node | None" = None
    right: "Node | None" = None

    def walk(self) -> Iterator["Node"]:
        """Node, left subtree, right subtree."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += [child for child in (node.right, node.left) if child is not None]

    def rows_below(self, gone: np.ndarray) -> np.ndarray:
        """Positions of its rows in order, without those that go."""
        return without(np.sort(np.concatenate([node.rows for node in self.walk() if node.rows is not None])), gone)


def impurity(criterion: str, ones: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Rows times half their Gini index, or rows times their entropy."""
    share = ones / total
    if criterion == "gini":
        return ones * (1 - share)
    inside = np.clip(share, 1e-300, 1), np.clip(1 - share, 1e-300, 1)
    return -total * (share * np.log(inside[0]) + (1 - share) * np.log(inside[1]))


@dataclass
class Grower:
    """Grows trees on features (n, d), by columns in memory, and labels (n,) of 0 and 1, and removes rows from them."""

    features: np.ndarray
    labels: np.ndarray
    max_depth: int
    num_thresholds: int
    random_depth: int
    num_features: int
    criterion: Criterion
    rebuilt: int = 0  # rows passed through nodes that were grown

    def grow(self, rows: np.ndarray, key: int, depth: int = 0) -> Node:
        """The subtree of sorted positions; its key holds seed, tree and path."""
        node = Node(key, depth, len(rows), int(self.labels[rows].sum()))
        self.rebuilt += len(rows)
        node.columns = self._columns(node, rows)
        self._split(node, rows)
        return node

    def _split(self, node: Node, rows: np.ndarray) -> None:
        """Make it a leaf of the rows, or choose its split and grow both sides."""
        node.rows = node.left = node.right = None
        node.feature, node.threshold = -1, 0.0
        if not node.columns:
            node.rows, node.columns = rows, None
            return
        node.feature, node.threshold, _ = self._best(node)
        left = self.features[rows, node.feature] <= node.threshold
        node.left = self.grow(rows[left], mix_one(node.key, 0), node.depth + 1)
        node.right = self.grow(rows[~left], mix_one(node.key, 1), node.depth + 1)

    def _columns(self, node: Node, rows: np.ndarray) -> list[Column]:
        """The attributes to try: the first of those that vary, in hash order; none where the node must be a leaf."""
        if node.ones in (0, node.total) or node.depth == self.max_depth:
            return []
        greedy = node.depth >= self.random_depth
        wanted = self.num_features if greedy else 1
        columns: list[Column] = []
        seeds = mix(node.key, np.arange(self.features.shape[1], dtype=np.uint64) + np.uint64(2))
        for feature in np.argsort(seeds, kind="stable"):
            values, inverse = np.unique(self.features[rows, feature], return_inverse=True)
            if len(values) > 1:
                ones = np.bincount(inverse, self.labels[rows], len(values)).astype(np.int64)
                ranks = mix(int(seeds[feature]), values.view(np.uint64))
                counts = np.bincount(inverse, minlength=len(values))
                column = Column(int(feature), values.tolist(), counts.tolist(), ones.tolist(), ranks.tolist())
                if greedy:
                    column.choose(self.num_thresholds)
                columns.append(column)
            if len(columns) == wanted:
                break
        return columns

    def _best(self, node: Node) -> tuple[int, float, int]:
        """(attribute, threshold, rows on its left): the purest of the chosen, or a random one near the root."""
        assert node.columns
        if node.depth < self.random_depth:
            (column,) = node.columns
            low, high = column.values[0], column.values[-1]
            own_key = mix_one(node.key, column.feature + 2)  # lowest of all, as it was chosen: not uniform itself
            share = (mix_one(own_key, 0) >> 11) / 2**53  # uniform in [0, 1)
            threshold = between(low, low * (1 - share) + high * share, high)
            return column.feature, threshold, sum(column.total[: bisect_right(column.values, threshold)])
        values, left, left_ones = np.concatenate([column.chosen for column in node.columns], axis=1)
        right, right_ones = node.total - left, node.ones - left_ones
        best = int(np.argmin(impurity(self.criterion, left_ones, left) + impurity(self.criterion, right_ones, right)))
        position = best
        for column in node.columns:
            if position < column.chosen.shape[1]:
                break
            position -= column.chosen.shape[1]
        j = bisect_left(column.values, values[best])
        low, high = column.values[j : j + 2]
        return column.feature, between(low, low / 2 + high / 2, high), int(left[best])

    def remove(self, node: Node, gone: np.ndarray) -> None:
        """Take rows out of a subtree, regrowing what a fit on the rest would grow otherwise."""
        node.total -= len(gone)
        node.ones -= int(self.labels[gone].sum())
        if node.left is None or node.right is None:
            assert node.rows is not None
            node.rows = without(node.rows, gone)
            return
        goes_left = self.features[gone, node.feature] <= node.threshold
        if not self._update_columns(node, gone):
            node.columns = self._columns(node, node.rows_below(gone))
        if node.columns:
            feature, threshold, left = self._best(node)
            if feature == node.feature and left == node.left.total - goes_left.sum():
                node.threshold = threshold  # it may have moved; the rows on its sides are the same
                for child, rows in ((node.left, gone[goes_left]), (node.right, gone[~goes_left])):
                    if len(rows):
                        self.remove(child, rows)
                return
        rows = node.rows_below(gone)
        self.rebuilt += len(rows)
        self._split(node, rows)

    def _update_columns(self, node: Node, gone: np.ndarray) -> bool:
        """Bring the cached statistics up to date; False if they must be made from the rows."""
        if node.columns is None or node.ones in (0, node.total):
            return False
        for column in node.columns:
            changed = [column.remove(float(self.features[row, column.feature]), int(self.labels[row])) for row in gone]
            if len(column.values) == 1:
                return False
            if any(changed) and node.depth >= self.random_depth:
                column.choose(self.num_thresholds)
        return True


def without(rows: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """Sorted rows without some of them."""
    return np.delete(rows, rows.searchsorted(gone))


def between(low: float, value: float, high: float) -> float:
    """The value, held within [low, high)."""
    return min(max(low, value), math.nextafter(high, -math.inf))
