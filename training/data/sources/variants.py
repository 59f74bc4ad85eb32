"""Groups of near-duplicates, which are held out as a whole."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

Array = np.ndarray


def first_of_group(names: Sequence[Hashable], items: Array, max_distance: float) -> list[int]:
    """Find each item's group, by the number of the group's first item.

    Two items are in one group if they have one name, or if their pixels hardly differ; and so are
    the members of two such pairs that share one.

    Args:
        names: of N items.
        items: uint8 ``(N, ...)``.
        max_distance: root mean square difference of pixels, as a fraction of 255, below which two
            are in one group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[Hashable, int] = {}
    same = [first.setdefault(name, i) for i, name in enumerate(names)]
    pixels = items.reshape(len(items), -1).astype(np.float32) / 255
    squares = (pixels**2).sum(axis=1)
    mean_square = (squares[:, None] + squares - 2 * pixels @ pixels.T) / pixels.shape[1]
    rows, columns = np.nonzero(mean_square < max_distance**2)
    rows = np.concatenate([rows, np.arange(len(items))])
    columns = np.concatenate([columns, same])
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(items), len(items)))
    _, group = connected_components(links, directed=False)
    leader = {g: i for i, g in reversed(list(enumerate(group.tolist())))}
    return [leader[g] for g in group.tolist()]
