"""The renderer: orientation, colours, occlusion."""

import io

import numpy as np
import pytest
from PIL import Image

from openshape_jax import render


def dot(x, y, z, colour, n=400):
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.03, (n, 3)) + [x, y, z], np.tile(colour, (n, 1))


def draw(*parts):
    xyz, rgb = (np.concatenate(x) for x in zip(*parts, strict=True))
    return render.picture(xyz, rgb, 64).astype(int)


def centre_of(image, channel):
    others = [c for c in range(3) if c != channel]
    rows, columns = np.nonzero((image[..., channel] > 120) & (image[..., others] < 90).all(-1))
    return rows.mean(), columns.mean()


def test_up_is_up_and_right_is_right():
    red, blue = dot(0, 0, 1, (1, 0, 0)), dot(0, 0, -1, (0, 0, 1))
    image = draw(red, blue)
    assert centre_of(image, 0)[0] < 25
    assert centre_of(image, 2)[0] > 39
    image = draw(dot(1, 0, 0, (1, 0, 0)), dot(-1, 0, 0, (0, 0, 1)))
    assert centre_of(image, 0)[1] > centre_of(image, 2)[1] + 20


def test_the_front_hides_the_back():
    wall = np.stack(np.meshgrid(np.linspace(-1, 1, 80), [0.0], np.linspace(-1, 1, 80)), -1).reshape(-1, 3)
    front = (wall + [0, -0.5, 0], np.tile([1.0, 0, 0], (len(wall), 1)))
    back = (wall * 0.5 + [0, 0.5, 0], np.tile([0, 0, 1.0], (len(wall), 1)))
    image = draw(front, back)[24:40, 24:40]
    assert (image[..., 0] > 2 * image[..., 2]).mean() > 0.95


def test_background_is_white_and_png_opens():
    image = draw(dot(0, 0, 0, (0, 1, 0)), dot(1, 0, 1, (0, 1, 0)))
    assert (image[0, 0] == 255).all()
    opened = Image.open(io.BytesIO(render.png(image.astype(np.uint8))))
    assert opened.size == (64, 64)


def test_degenerate_clouds_do_not_fail():
    assert draw((np.zeros((5, 3)), np.ones((5, 3)) * 0.5)).shape == (64, 64, 3)


def test_a_thin_board_stays_thin_and_closed():
    rng = np.random.default_rng(0)
    board = rng.uniform(-1, 1, (6000, 3)) * [0.05, 0.001, 1]
    image = draw((board, np.tile([0.2, 0.2, 0.2], (6000, 1))))
    covered = (image < 250).any(-1)
    widths = covered[8:-8].sum(1)
    assert widths.min() >= 3  # 0.085 of the height of 57 pixels is 4.8
    assert widths.max() <= 8


def test_light_comes_from_above_and_leaves_the_hue():
    cube = np.random.default_rng(0).uniform(-1, 1, (9000, 3))
    cube[np.arange(9000), np.arange(9000) % 3] = np.sign(cube[np.arange(9000), np.arange(9000) % 3])
    image = draw((cube, np.tile([0.8, 0.4, 0.2], (9000, 1))))
    top, side = image[15, 32], image[40, 46]
    assert top.sum() > 1.1 * side.sum()
    assert abs(top[0] / top[1] - 2) < 0.2
    assert abs(side[0] / side[1] - 2) < 0.2


def test_the_picture_is_a_function_of_the_cloud():
    rng = np.random.default_rng(0)
    xyz, rgb = rng.normal(size=(12_000, 3)), rng.random((12_000, 3))
    first = render.picture(xyz, rgb, 48)
    assert (first == render.picture(xyz, rgb, 48)).all()
    shifted = render.picture(xyz * 40 + 7, rgb, 48).astype(int)
    assert np.abs(shifted - first).mean() < 1


@pytest.mark.parametrize(
    ("xyz", "message"),
    [
        (np.zeros((0, 3)), r"xyz has shape \(0, 3\)"),
        (np.zeros((4, 2)), r"xyz has shape \(4, 2\)"),
        (np.full((4, 3), np.nan), "NaN or infinite"),
    ],
)
def test_unusable_clouds_are_errors(xyz, message):
    with pytest.raises(ValueError, match=message):
        render.picture(xyz, xyz, 32)


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_few_points_are_drawn(n):
    xyz = np.random.default_rng(n).normal(size=(n, 3))
    image = render.picture(xyz, np.zeros((n, 3)), 64)
    assert (image < 200).any()


def test_discs_are_drawn_nearest_first():
    rng = np.random.default_rng(0)
    spots = rng.integers(-12, 52, (60, 2))  # some outside the picture
    towards, radius = rng.normal(size=60), rng.uniform(2, 9, 60)
    winner, depth = render._splat(spots, towards, radius, (40, 36))
    for row, column in np.ndindex(40, 36):
        covers = ((spots - [row, column]) ** 2).sum(1) <= radius**2
        nearest = np.where(covers, towards, -np.inf).argmax() if covers.any() else -1
        assert winner[row, column] == nearest
        assert depth[row, column] == (towards[nearest] if covers.any() else -np.inf)


def test_borders_move_back_as_by_looking_at_every_pixel():
    rng = np.random.default_rng(0)
    spots, towards = rng.integers(3, 45, (80, 2)), rng.normal(0, 4, 80)
    winner, depth = render._splat(spots, towards, rng.uniform(2, 5, 80), (48, 48))
    expected_winner, expected = winner, depth
    for i in range(5):
        steps = [(0, 1), (0, -1), (1, 0), (-1, 0)] + [(a, b) for a in (1, -1) for b in (1, -1)] * (i % 2)
        lowest, chosen = expected, expected_winner
        for step in steps:
            other = np.roll(expected, step, (0, 1))
            falls = (other < expected - 1.5) & (other < lowest)
            lowest = np.where(falls, other, lowest)
            chosen = np.where(falls, np.roll(expected_winner, step, (0, 1)), chosen)
        expected, expected_winner = lowest, chosen
    found = render._draw_back(winner, depth, 5, step=1.5)
    np.testing.assert_array_equal(found[0], expected_winner)
    np.testing.assert_array_equal(found[1], expected)
    assert (found[0] != winner).sum() > 50
