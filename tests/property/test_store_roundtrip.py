"""Whatever the grid, channels, Uppers and count: the stores together hold every pixel of every image."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from psl_flower.patches import PatchGrid
from psl_flower.patches.assignment import assign
from psl_flower.patches.store import StoreMeta
from psl_flower.stores.opening import open_store
from psl_flower.stores.plain import PlainStoreWriter


@st.composite
def grids(draw):
    axes = []
    for _ in range(2):
        patch = draw(st.integers(1, 5))
        stride = draw(st.integers(1, patch))
        axes.append((patch + stride * draw(st.integers(0, 3)), patch, stride))
    image, patch, stride = zip(*axes, strict=True)
    return PatchGrid(image_size=image, patch_size=patch, stride=stride)


@settings(max_examples=40, deadline=None)
@given(
    grid=grids(),
    channels=st.integers(1, 4),
    chunks=st.sampled_from([(), (0,), (1,), (3, 0, 1), (17,)]),
    method=st.sampled_from(["scatter", "round-robin"]),
    data=st.data(),
)
def test_stores_hold_every_pixel(grid, channels, chunks, method, data):
    num_uppers = data.draw(st.integers(1, grid.num_patches))
    assignment = assign(grid, num_uppers, method)
    count = sum(chunks)
    seed = data.draw(st.integers(0, 2**32 - 1))
    images = np.random.default_rng(seed).integers(0, 256, (count, channels, *grid.image_size), np.uint8)
    order = np.array(data.draw(st.permutations(range(count))), np.int64)
    merged = np.zeros((count, grid.num_patches, channels, *grid.patch_size), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        for upper in range(num_uppers):
            held = tuple(p for p, m in enumerate(assignment) if m == upper)
            meta = StoreMeta(
                dataset="00",
                upper=upper,
                positions=held,
                patch_shape=(channels, *grid.patch_size),
                num_samples=count,
            )
            writer = PlainStoreWriter(Path(folder, str(upper)), meta)
            done = 0
            for size in chunks:
                writer.append(grid.split(images[done : done + size])[:, list(held)])
                done += size
            writer.finish()
            store = open_store(Path(folder, str(upper)))
            assert store.meta == meta
            merged[:, list(held)] = store.read(order)
            store.close()
    np.testing.assert_array_equal(grid.merge(merged), images[order])
