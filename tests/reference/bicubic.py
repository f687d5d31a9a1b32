"""Bicubic resizing of 8-bit images in NumPy, as Pillow defines it: two passes in whole numbers, each rounded to bytes.

    w(x) = 1.5 |x|^3 - 2.5 |x|^2 + 1,  |x| <= 1        -0.5 |x|^3 + 2.5 |x|^2 - 4 |x| + 2,  1 < |x| < 2

Where an axis shrinks by r > 1 the kernel is stretched by r, so that every input pixel counts. Weights are scaled by
2^22 and rounded to whole numbers; a pass is a weighted sum, plus a half, shifted back and clipped to 0 .. 255.
Which axis comes first changes the result, and Pillow's choice has changed between its versions: both are computed.
"""

import numpy as np

BITS = 22


def weights(size: int, new_size: int) -> np.ndarray:
    """int64 (new_size, size): of each input pixel in each output pixel, scaled by 2^22."""
    ratio = size / new_size
    stretch = max(ratio, 1.0)
    table = np.zeros((new_size, size), np.int64)
    for place in range(new_size):
        centre = (place + 0.5) * ratio
        first = max(int(centre - 2.0 * stretch + 0.5), 0)
        last = min(int(centre + 2.0 * stretch + 0.5), size)
        x = np.abs((np.arange(first, last) - centre + 0.5) / stretch)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1.0, -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
        w = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
        scaled = w / w.sum() * 2.0**BITS
        table[place, first:last] = np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int64)
    return table


def along(image: np.ndarray, axis: int, new_size: int) -> np.ndarray:
    """One pass over uint8 (height, width, channels); none where the size stays."""
    if image.shape[axis] == new_size:
        return image
    table = weights(image.shape[axis], new_size).astype(np.float64)  # sums below 2^33: exact in float64
    sums = np.moveaxis(np.tensordot(table, image.astype(np.float64), (1, axis)), 0, axis).astype(np.int64)
    return np.clip((sums + (1 << (BITS - 1))) >> BITS, 0, 255).astype(np.uint8)


def resize(image: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows resized first, columns resized first) of uint8 (height, width, channels)."""
    return along(along(image, 1, width), 0, height), along(along(image, 0, height), 1, width)
