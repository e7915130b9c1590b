"""Captions of contact sheets: letters beyond ASCII are drawn, and those that a font lacks are question marks."""

import importlib.util

import numpy as np
import pytest

from psl_flower.data import sheet


def drawn(text):
    """Return the pixels of a tile whose first line is the text."""
    return np.asarray(sheet.tile(None, [text]))


@pytest.fixture(params=["DejaVu", "Latin-1"])
def font(request, monkeypatch):
    """Draw with matplotlib's font, or as where matplotlib is not installed."""
    sheet._font.cache_clear()
    if request.param == "Latin-1":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    yield request.param
    sheet._font.cache_clear()


def test_umlauts_are_letters(font):
    letters = "ÄÖÜäöüßéñçÅ"
    assert len({drawn(letter).tobytes() for letter in letters + "?\uffff"}) == len(letters) + 1


def test_letters_that_the_font_lacks(font):
    assert np.array_equal(drawn("a猫b"), drawn("a?b"))
    assert np.array_equal(drawn("Ж"), drawn("?")) == (font == "Latin-1")
