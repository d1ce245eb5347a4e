# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The 1797 handwritten digits that come with scikit-learn: 8x8 grey, no download.

    Data("digits", options={"classes": (0, 1, 2, 3, 4)})

The UCI set 'Optical Recognition of Handwritten Digits' (Alpaydin and Kaynak 1998), its published test part.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tl_jax.config import Data
from tl_jax.core.errors import UserError
from tl_jax.data.decode import with_channels
from tl_jax.data.examples import Examples


@dataclass(frozen=True)
class Config:
    """
    Attributes:
      classes: keep only these digits, relabelled from 0 in this order; all ten when empty.
      channels: 1 as published, 3 with the grey repeated.
    """

    classes: tuple[int, ...] = ()
    channels: Literal[1, 3] = 1


def read(data: Data, options: Config) -> dict[str, Examples]:
    """`all`: uint8[8, 8, channels], the published 0..16 scaled to 0..255.

    Raises:
      UserError: scikit-learn is missing, or a class is no digit or given twice.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("data.source", "digits needs scikit-learn", "run: pip install scikit-learn") from error
    classes = options.classes or tuple(range(10))
    if len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
        raise UserError("data.options.classes", f"{classes} must be different digits from 0 to 9")
    if data.group is not None:
        raise UserError("data.group", "digits has no fields to group by", "remove it")
    published = load_digits()
    rows = np.flatnonzero(np.isin(published.target, classes))
    images = np.rint(published.images[rows] * (255 / 16)).astype(np.uint8)[..., None]
    label_of = np.zeros(10, np.int64)
    label_of[list(classes)] = np.arange(len(classes))
    examples = Examples(
        lambda i: {"image": with_channels(images[i], options.channels)},
        [f"digits/{row}" for row in rows],
        kind="image",
        classes=[str(digit) for digit in classes],
        labels=label_of[published.target[rows]],
    )
    return {"all": examples}
