# Copyright 2026 The tl_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The sets that come with installed packages: scikit-learn's digits and SciPy's docstrings."""

import re
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tl_jax.config import Data
from tl_jax.core.errors import UserError
from tl_jax.data.sources import digits, docstrings


def test_digits_are_the_published_ones():
    """All 1797, scaled so that the published 16 becomes 255."""
    examples = digits.read(Data("digits"), digits.Config())["all"]
    published = load_digits()
    np.testing.assert_array_equal(examples.labels, published.target)
    assert len(examples) == 1797 and examples[0]["image"].shape == (8, 8, 1) and examples[0]["image"].dtype == np.uint8
    # 255 / 16 is no whole number, so a pixel is within half a step.
    np.testing.assert_allclose(examples[9]["image"][..., 0] * (16 / 255), published.images[9], atol=0.5 * 16 / 255)


def test_digits_subset_is_relabelled_in_order():
    """classes=(7, 2): sevens are class 0, named '7'."""
    examples = digits.read(Data("digits"), digits.Config(classes=(7, 2)))["all"]
    target = load_digits().target
    assert examples.classes == ("7", "2")
    np.testing.assert_array_equal(examples.labels, (target[np.isin(target, (2, 7))] == 2).astype(int))
    for wrong in ((10,), (1, 1)):
        with pytest.raises(UserError, match="different digits from 0 to 9"):
            digits.read(Data("digits"), digits.Config(classes=wrong))


@pytest.mark.parametrize("source, module", [(digits, "sklearn.datasets"), (docstrings, "scipy.stats")])
def test_missing_package_names_the_command(source, module, monkeypatch):
    """The packages are extras."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="Run: pip install"):
        source.read(Data("x"), source.Config())


@pytest.fixture(scope="module")
def scipy_docs():
    return docstrings.read(Data("docstrings"), docstrings.Config())["all"]


def test_docstrings_make_a_set(scipy_docs):
    """At least five classes of at least 40 texts, in the order of their keys."""
    counts = np.bincount(scipy_docs.labels)
    assert len(scipy_docs.classes) >= 5 and counts.min() >= 40
    assert scipy_docs.keys == sorted(set(scipy_docs.keys)) and "scipy.stats.kstest" in scipy_docs.keys
    assert scipy_docs.classes[scipy_docs.labels[scipy_docs.keys.index("scipy.stats.kstest")]] == "stats"


def test_docstrings_do_not_give_the_answer_away(scipy_docs):
    """No subpackage's name, no module path, no import and not the function's own name is left in any text."""
    told = re.compile(rf"(?<![a-z0-9])(scipy|{'|'.join(docstrings._MODULES)})(?![a-z0-9])", re.IGNORECASE)
    for i, key in enumerate(scipy_docs.keys):
        text = scipy_docs[i]["text"]
        assert not told.search(text), (key, told.search(text))
        assert ">>> import" not in text and ">>> from" not in text
        assert not re.search(rf"(?<!\w){re.escape(key.rpartition('.')[2])}(?!\w)", text), key


def test_docstrings_hold_nothing_twice(scipy_docs):
    """Neither a name nor a text occurs twice, so none can be on both sides of a split."""
    names = [key.rpartition(".")[2] for key in scipy_docs.keys]
    texts = [scipy_docs[i]["text"] for i in range(len(scipy_docs))]
    assert len(set(names)) == len(names) and len(set(texts)) == len(texts)


def test_docstring_options():
    """Chosen classes only, and longer texts only; an unknown class is told."""
    options = docstrings.Config(classes=("stats", "signal"), min_chars=1000)
    examples = docstrings.read(Data("docstrings"), options)["all"]
    assert (
        examples.classes == ("signal", "stats") and min(len(examples[i]["text"]) for i in range(len(examples))) >= 1000
    )
    with pytest.raises(UserError, match="did you mean 'stats'"):
        docstrings.read(Data("docstrings"), docstrings.Config(classes=("stat",)))
