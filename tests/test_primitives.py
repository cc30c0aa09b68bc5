"""The synthetic objects: determinism, labels, captions, variety."""

import re

import numpy as np
import pytest

from openshape_jax.data import schema, sources, vocabulary
from tfds_builders.primitives import shapes
from tfds_builders.primitives.parts import Scene, revolve

COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
ALL = [shapes.sample(seed, 300) for seed in range(2 * len(shapes.LABELS))]


def test_a_seed_decides_everything():
    for seed in (0, 3, 10**9):
        first, again = shapes.sample(seed, 100), shapes.sample(seed, 100)
        np.testing.assert_array_equal(first.xyz, again.xyz)
        np.testing.assert_array_equal(first.rgb, again.rgb)
        assert first.caption == again.caption
    assert not np.array_equal(shapes.sample(0, 100).xyz, shapes.sample(len(shapes.LABELS), 100).xyz)


def test_labels_are_canonical_names_and_many():
    names = set(vocabulary.load().names)
    assert set(shapes.CATEGORIES) <= names
    assert len(shapes.CATEGORIES) == 73
    assert {s.label for s in ALL} == set(shapes.CATEGORIES)


@pytest.mark.parametrize("seed", range(len(shapes.LABELS)), ids=lambda s: shapes.LABELS[s])
def test_every_category_is_finite_and_has_an_extent(seed):
    shape = ALL[seed]
    cloud = schema.to_unit_sphere(shape.xyz)
    assert np.isfinite(cloud.xyz).all()
    assert shape.rgb.min() >= 0
    assert shape.rgb.max() <= 1
    assert shape.caption.startswith(("a ", "an "))
    assert shape.label.partition(" (")[0] in shape.caption


def test_captions_count_what_is_there(monkeypatch):
    calls = {}
    grid = Scene.front_grid

    def counted(self, size, bottom, rows, columns, *rest, **more):
        calls["rows"], calls["columns"] = rows, columns
        return grid(self, size, bottom, rows, columns, *rest, **more)

    monkeypatch.setattr(Scene, "front_grid", counted)
    for label, noun, key in (("dresser", "row", "rows"), ("wardrobe", "door", "columns")):
        for k in range(4):
            shape = shapes.sample(shapes.LABELS.index(label) + k * len(shapes.LABELS), 50)
            said = re.search(rf"(\w+) {noun}s?\b", shape.caption).group(1)
            assert COUNTS[said] == calls[key]


def test_points_are_uniform_in_area():
    scene = Scene(np.random.default_rng(0))
    scene.add(np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[5, 0, 0], [8, 0, 0], [5, 1, 0]]]), "red")
    xyz, _ = scene.sample(8000)
    assert abs((xyz[:, 0] >= 5).mean() - 0.75) < 0.02
    small = xyz[xyz[:, 0] < 2]
    np.testing.assert_allclose(small.mean(0), [1 / 3, 1 / 3, 0], atol=0.02)


def test_revolve_closes_and_keeps_radii():
    triangles = revolve([(1, 0), (1, 2)], 24)
    np.testing.assert_allclose(np.linalg.norm(triangles[..., :2], axis=-1), 1, atol=1e-9)
    area = (
        np.linalg.norm(
            np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1
        ).sum()
        / 2
    )
    assert area == pytest.approx(4 * np.pi, rel=0.01)


def test_built_set(data_dir):
    train, info = sources.open_split("primitives/tiny", "train", data_dir)
    test, _ = sources.open_split("primitives/tiny", "test", data_dir)
    assert (len(train), len(test)) == (166, 83)
    uids = {train[i]["uid"] for i in range(len(train))}
    assert not uids & {test[i]["uid"] for i in range(len(test))}
    record = train[0]
    assert record["xyz"].shape == (1024, 3)
    by_source = {t.source: t for t in record["texts"]}
    assert by_source["class"].text == record["label"]
    expected = vocabulary.load().encode([record["label"]])[0]
    np.testing.assert_allclose(by_source["class"].feature, expected, atol=1e-3)
    assert by_source["caption"].feature is None
    assert info.metadata["up"] == "z"
