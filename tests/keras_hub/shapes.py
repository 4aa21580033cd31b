"""Pictures of a disc or a square somewhere on noise, with their masks and boxes."""

import numpy as np

BACKGROUND, DISC, SQUARE = range(3)


def shapes(count: int, side: int = 64, seed: int = 0):
    """Pictures with one shape each.

    Args:
        count: How many.
        side: Of a picture in pixels.
        seed: Of the draw.

    Returns:
        (N, side, side, 3) uint8 pictures; (N, side, side) classes of the pixels; (N, 1, 4) boxes
        as left, top, right, bottom in pixels; (N, 1) 0 for a disc, 1 for a square.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    rows, columns = np.mgrid[:side, :side]
    pictures, masks, boxes, kinds = [], [], [], []
    for _ in range(count):
        size = int(rng.integers(side * 3 // 8, side * 5 // 8))
        top, left = rng.integers(0, side - size, 2)
        kind = int(rng.integers(2))
        inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
        if kind == 0:
            radius, centre = size / 2, np.array([top, left]) + (size - 1) / 2
            inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
        picture = rng.integers(0, 120, 3) + rng.normal(0, 20, (side, side, 3))
        picture[inside] += rng.integers(70, 130, 3)
        pictures.append(picture.clip(0, 255).astype("uint8"))
        masks.append(np.where(inside, kind + 1, BACKGROUND))
        boxes.append([[left, top, left + size, top + size]])
        kinds.append([kind])
    return (
        np.stack(pictures),
        np.stack(masks).astype("int32"),
        np.asarray(boxes, "float32"),
        np.asarray(kinds, "float32"),
    )
