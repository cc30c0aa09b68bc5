"""The renderer: orientation, colours, occlusion."""

import io

import numpy as np
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
