# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters for another size, against PyTorch's resize, least squares in NumPy, and sums by hand."""

import ml_dtypes
import numpy as np
import pytest

from tl_jax.core.errors import UserError
from tl_jax.models import bert
from tl_jax.weights import surgery
from tl_jax.weights.files import WeightFiles
from tl_jax.weights.fill import fill
from tl_jax.weights.match import match_tensors

RNG = np.random.default_rng(0)


def resized(image, size):
    """PyTorch's antialiased bicubic resize of float64[..., H, W]."""
    import torch

    images = torch.from_numpy(image.reshape(1, -1, *image.shape[-2:]))
    found = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
    return found.numpy().reshape(*image.shape[:-2], *size)


@pytest.mark.parametrize(("old", "new"), [(3, 5), (7, 3), (14, 24), (1, 2)])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_a_square_of_positions_is_resized_as_by_pytorch(old, new, prefix):
    """And the tokens before it are kept."""
    table = RNG.normal(size=(1, prefix + old**2, 4))
    found = surgery.grid(table, prefix + new**2)
    np.testing.assert_array_equal(found[:, :prefix], table[:, :prefix])
    square = table[0, prefix:].T.reshape(4, old, old)
    np.testing.assert_allclose(found[0, prefix:].T.reshape(4, new, new), resized(square, (new, new)), atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(5, 9), (9, 4)])
def test_a_line_of_positions_is_resized_as_by_pytorch(old, new):
    """An image of equal columns."""
    table = RNG.normal(size=(old, 4))
    image = np.repeat(table.T[..., None], 2, axis=2)
    np.testing.assert_allclose(surgery.line(table, new).T, resized(image, (new, 2))[..., 0], atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(4, 6), (6, 4)])
def test_a_resized_patch_kernel_is_the_least_squares_solution(old, new):
    """Minimum over w of |B' w - k|², whose products with resized patches are nearest to the old ones."""
    kernel = RNG.normal(size=(old, old, 3, 5))
    units = np.eye(old * old).reshape(-1, old, old)
    resize = resized(units, (new, new)).reshape(-1, new * new).T
    expected = np.linalg.lstsq(resize.T, kernel.reshape(old * old, -1), rcond=None)[0]
    found = surgery.patch(kernel, new, new)
    np.testing.assert_allclose(found.reshape(new * new, -1), expected, atol=1e-10)
    if new > old:  # Nothing is lost then: a resized patch gives what the patch gave.
        patch = RNG.normal(size=(3, old, old))
        before = np.einsum("chw,hwco->o", patch, kernel)
        np.testing.assert_allclose(np.einsum("chw,hwco->o", resized(patch, (new, new)), found), before, atol=1e-10)


def test_channels_are_summed_or_repeated():
    """1: the sum; 2: 3/2 of the first two; 4: 3/4, the first again; 12: four times a quarter."""
    kernel = RNG.normal(size=(2, 2, 3, 5))
    red, green, blue = np.moveaxis(kernel, 2, 0)
    expected = {
        1: [red + green + blue],
        2: [1.5 * red, 1.5 * green],
        4: [0.75 * red, 0.75 * green, 0.75 * blue, 0.75 * red],
        12: [0.25 * red, 0.25 * green, 0.25 * blue] * 4,
    }
    for count, channels in expected.items():
        np.testing.assert_allclose(surgery.channels(kernel, count), np.stack(channels, axis=2), atol=1e-15)


def test_new_words_lie_about_the_mean_with_the_old_ones_covariance():
    """The old rows are kept; the new ones have 1e-9 of the covariance, and are the same at every call."""
    table = (RNG.normal(size=(50, 3)) @ RNG.normal(size=(3, 3)) + 2).astype(np.float32)
    found = surgery.vocabulary(table, 20050)
    np.testing.assert_array_equal(found[:50], table)
    new = found[50:] - table.astype(np.float64).mean(axis=0)
    # Twenty thousand draws know a mean to a hundredth of a deviation, a covariance to a few hundredths of itself.
    covariance = np.cov(table.astype(np.float64).T, bias=True)
    np.testing.assert_allclose(new.mean(axis=0), 0, atol=0.03 * np.sqrt(1e-9 * covariance.diagonal().max()))
    np.testing.assert_allclose(np.cov(new.T) * 1e9, covariance, atol=0.05 * covariance.diagonal().max())
    np.testing.assert_array_equal(surgery.vocabulary(table, 20050), found)


def test_only_the_axes_that_were_asked_for_may_differ():
    """A row for channels explains no other patch size, and no vocabulary shrinks."""
    rows = (
        ("stem/kernel", "channels", ("num_channels",)),
        ("stem/kernel", "patch", ("patch_size",)),
        ("stem/word", "vocabulary", ("vocab_size",)),
    )
    one = surgery.asked(rows, {"num_channels", "hidden_size"})
    assert surgery.steps(one, "stem/kernel", (4, 4, 3, 8), (4, 4, 1, 8)) == ("channels",)
    assert surgery.steps(one, "stem/kernel", (4, 4, 3, 8), (6, 6, 1, 8)) == ()
    assert surgery.steps(rows, "stem/kernel", (4, 4, 3, 8), (6, 6, 1, 8)) == ("channels", "patch")
    assert surgery.steps(rows, "stem/kernel", (4, 4, 3, 8), (6, 6, 1, 9)) == ()
    assert surgery.steps(rows, "stem/word", (9, 8), (10, 8)) == ("vocabulary",)
    assert surgery.steps(rows, "stem/word", (9, 8), (8, 8)) == ()
    kernel = RNG.normal(size=(4, 4, 3, 8)).astype(ml_dtypes.bfloat16)
    found = surgery.apply(("channels", "patch"), kernel, (6, 6, 1, 8))
    assert found.shape == (6, 6, 1, 8) and found.dtype == kernel.dtype


def test_loading_resizes_what_was_asked_for_and_says_so(publish, tensors):
    """A longer table of positions; without the row, the error that names both shapes."""
    folder = publish()
    files = WeightFiles(folder)
    source, indices = bert.SOURCES["hf"], bert.Config(num_hidden_layers=1).indices()
    params = {}
    rules = (rule for row in source.rules for rule in row.expand(indices))
    for rule in (rule for rule in rules if rule.tensors[0] in tensors):
        params[rule.params[0]] = rule.layout.load((tensors[rule.tensors[0]],))[0]
    wanted = {**params, "stem/position/embedding": np.zeros((24, 64), np.float32)}
    row = ("stem/position/embedding", "line", ("max_position_embeddings",))

    match = match_tensors(source, indices, files.tensors, wanted, (), "bert", (row,))
    arrays, receipt = fill(files, match, wanted, where="bert")
    expected = surgery.line(params["stem/position/embedding"], 24)
    np.testing.assert_allclose(arrays["stem/position/embedding"], expected, atol=1e-6)
    np.testing.assert_array_equal(arrays["head/bias"], params["head/bias"])
    assert "resized  stem/position/embedding [16, 64] to [24, 64] (line)" in str(receipt)
    assert receipt.to_dict()["resized"][0][0] == "stem/position/embedding"
    with pytest.raises(UserError, match=r"stem/position/embedding is \[24, 64\], the file has .* \[16, 64\]"):
        match_tensors(source, indices, files.tensors, wanted, (), "bert")
