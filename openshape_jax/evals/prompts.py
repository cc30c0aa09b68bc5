"""Templates that class names are put into before their text vectors are averaged; {} stands for the name."""

from __future__ import annotations

from collections.abc import Iterator

NAME_ONLY = ("{}",)


def _ulip() -> Iterator[str]:
    yield "a point cloud model of {}."
    yield from (f"There is {a} {{}} in the scene." for a in ("a", "the"))
    yield from (f"a photo of {a} {{}} in the scene." for a in ("a", "the", "one"))
    yield from (f"itap of {a} {{}}." for a in ("a", "my", "the"))  # "I took a picture"
    yield from (f"a photo of {a} {{}}." for a in ("a", "my", "the", "one", "many"))
    yield from (f"a {k} photo of {a} {{}}." for k in ("good", "bad") for a in ("a", "the"))
    for kind in ("nice", "cool", "weird", "small", "large", "clean", "dirty"):
        yield from (f"a photo of {a} {kind} {{}}." for a in ("a", "the"))
    yield from (f"a {k} photo of {a} {{}}." for k in ("bright", "dark") for a in ("a", "the"))
    yield from (f"a photo of {a} hard to see {{}}." for a in ("a", "the"))
    for kind in ("low resolution", "cropped", "close-up", "jpeg corrupted", "blurry", "pixelated"):
        yield from (f"a {kind} photo of {a} {{}}." for a in ("a", "the"))
    yield "a black and white photo of the {}."
    yield "a black and white photo of a {}"  # without a full stop, as published
    yield from (f"{a} {k} {{}}." for k in ("plastic", "toy", "plushie", "cartoon") for a in ("a", "the"))
    yield from (f"{a} embroidered {{}}." for a in ("an", "the"))
    yield from (f"a painting of {a} {{}}." for a in ("the", "a"))


# The 64 of ULIP (arXiv 2212.05171; github.com/salesforce/ULIP, data/templates.json, "modelnet40_64"), by
# which OpenShape made its class vectors; in the order published.
ULIP = tuple(_ulip())
