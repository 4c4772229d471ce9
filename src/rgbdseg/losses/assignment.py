"""The assignment problem: pairs of rows and columns at the least total cost."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
from numpy.typing import NDArray

from rgbdseg.errors import UsageError


def assign(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each row the column that it is assigned to, no column twice, at the least sum of costs.

    Solved by SciPy where it is installed.

    Args:
        cost: finite, (rows, columns), at most as many rows as columns.

    Raises:
        UsageError: for more rows than columns.
    """
    rows, columns = cost.shape
    if rows > columns:
        raise UsageError(f"{rows} classes are to be assigned to {columns} queries; give the model more queries")
    if importlib.util.find_spec("scipy") is None:
        return shortest_augmenting_paths(cost)
    optimize = importlib.import_module("scipy.optimize")
    _, assigned = optimize.linear_sum_assignment(cost)
    return np.asarray(assigned, np.int64)


def shortest_augmenting_paths(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return what `assign` does, without SciPy.

    Jonker, Volgenant, A Shortest Augmenting Path Algorithm for Dense and Sparse Linear Assignment Problems, Computing
    1987: rows are added one after the other, each along the path of least reduced cost to a free column.
    """
    rows, columns = cost.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1, np.int64)
    for added in range(rows):
        distance = np.full(columns, np.inf)
        before = np.full(columns, -1, np.int64)  # the column from which each one is reached
        reached = np.zeros(columns, bool)
        row, column, length = added, -1, 0.0
        while row >= 0:
            through = length + cost[row] - row_price[row] - column_price
            shorter = ~reached & (through < distance)
            distance[shorter], before[shorter] = through[shorter], column
            column = int(np.where(reached, np.inf, distance).argmin())
            length = distance[column]
            reached[column] = True
            row = int(row_of[column])
        passed = reached.copy()
        passed[column] = False
        row_price[added] += length
        row_price[row_of[passed]] += length - distance[passed]
        column_price[passed] -= length - distance[passed]
        while column >= 0:  # every row on the path moves one column on
            previous = int(before[column])
            row_of[column] = added if previous < 0 else row_of[previous]
            column = previous
    assigned = np.empty(rows, np.int64)
    taken = row_of >= 0
    assigned[row_of[taken]] = np.flatnonzero(taken)
    return assigned
