"""The synthetic objects: `sample(seed, num_points)` is a function of its arguments only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tfds_builders.primitives import appliances, fixtures, furniture, household, leisure, outdoors
from tfds_builders.primitives.parts import Scene

# label (a name of the vocabulary) -> (constructor, other true names)
CATEGORIES = {
    "chair": (furniture.chair, ("seat",)),
    "armchair": (furniture.armchair, ("chair",)),
    "sofa": (furniture.sofa, ("couch",)),
    "table": (furniture.table, ("dining table",)),
    "coffee table": (furniture.coffee_table, ("table",)),
    "desk": (furniture.desk, ("table",)),
    "dresser": (furniture.dresser, ("chest of drawers",)),
    "nightstand": (furniture.nightstand, ("bedside table",)),
    "bed": (furniture.bed, ()),
    "bunk bed": (furniture.bunk_bed, ("bed",)),
    "stool": (furniture.stool, ()),
    "bench": (furniture.bench, ()),
    "bookcase": (furniture.bookcase, ("bookshelf",)),
    "wardrobe": (furniture.wardrobe, ("closet",)),
    "cabinet": (furniture.cabinet, ("cupboard",)),
    "toilet": (household.toilet, ()),
    "bathtub": (household.bathtub, ("bath",)),
    "sink": (household.sink, ("washbasin",)),
    "faucet": (household.faucet, ("tap",)),
    "monitor (computer equipment)": (appliances.monitor, ("computer screen",)),
    "television set": (appliances.television_set, ("tv",)),
    "laptop computer": (appliances.laptop, ("laptop",)),
    "lamp": (appliances.lamp, ()),
    "bottle": (household.bottle, ()),
    "cup": (household.cup, ()),
    "mug": (household.mug, ("cup",)),
    "vase": (household.vase, ()),
    "bowl": (household.bowl, ()),
    "plate": (household.plate, ("dish",)),
    "pot": (household.pot, ("cooking pot",)),
    "refrigerator": (appliances.refrigerator, ("fridge",)),
    "stove": (appliances.stove, ("cooker",)),
    "automatic washer": (appliances.automatic_washer, ("washing machine",)),
    "radiator": (appliances.radiator, ()),
    "door": (household.door, ()),
    "window": (household.window, ()),
    "box": (household.box, ()),
    "trash can": (household.trash_can, ("bin",)),
    "wall socket": (appliances.wall_socket, ("power outlet",)),
    "light switch": (appliances.light_switch, ()),
    "clock": (appliances.clock, ("wall clock",)),
    "ladder": (household.ladder, ()),
    "stairs": (household.stairs, ("staircase",)),
    "houseplant": (household.houseplant, ("potted plant",)),
    "fireplace": (household.fireplace, ()),
    "umbrella": (household.umbrella, ("parasol",)),
    "speaker (stero equipment)": (appliances.speaker, ("loudspeaker",)),
    "car (automobile)": (outdoors.car, ("car",)),
    "truck": (outdoors.truck, ()),
    "bus (vehicle)": (outdoors.bus, ("bus",)),
    "bicycle": (outdoors.bicycle, ("bike",)),
    "airplane": (outdoors.airplane, ("plane",)),
    "person": (outdoors.person, ("human",)),
    "tree": (outdoors.tree, ()),
    "tent": (outdoors.tent, ()),
    "cone": (outdoors.cone, ("traffic cone",)),
    "streetlight": (outdoors.streetlight, ("street lamp",)),
    "guitar": (outdoors.guitar, ()),
    "hat": (outdoors.hat, ()),
    "toy": (leisure.toy, ("plaything",)),
    "lantern": (leisure.lantern, ()),
    "deck chair": (leisure.deck_chair, ("beach chair",)),
    "flower arrangement": (leisure.flower_arrangement, ("floral arrangement",)),
    "oven": (fixtures.oven, ()),
    "knife": (fixtures.knife, ()),
    "towel": (fixtures.towel, ()),
    "towel rack": (fixtures.towel_rack, ("towel rail",)),
    "coffee maker": (fixtures.coffee_maker, ("coffee machine",)),
    "fume hood": (fixtures.fume_hood, ("range hood",)),
    "glass (drink container)": (household.glass, ("drinking glass",)),
    "tray": (fixtures.tray, ("serving tray",)),
    "water heater": (fixtures.water_heater, ("hot-water heater",)),
    "swimming pool": (leisure.swimming_pool, ("pool",)),
}
# Twice as frequent: furniture that varies most.
COMMON = ("chair", "sofa", "table", "desk", "dresser", "nightstand", "bed", "toilet", "bathtub",
          "monitor (computer equipment)")  # fmt: skip
LABELS = (*CATEGORIES, *COMMON)


class Shape(NamedTuple):
    """One synthetic object."""

    xyz: np.ndarray  # (N, 3) float64 metres, z-up, front towards -y
    rgb: np.ndarray  # (N, 3) in [0, 1]
    label: str  # a canonical name of the vocabulary
    synonyms: tuple[str, ...]
    caption: str


def sample(seed: int, num_points: int) -> Shape:
    """The object of a seed: its label cycles through LABELS, everything else is drawn.

    Args:
      seed: any non-negative integer.
      num_points: points sampled uniformly by area.
    """
    label = LABELS[seed % len(LABELS)]
    scene = Scene(np.random.default_rng((seed, 20230510)))
    build, synonyms = CATEGORIES[label]
    colour = scene.colour()
    details = build(scene, colour)
    xyz, rgb = scene.sample(num_points)
    # Proportions vary beyond the parameters.
    stretch = np.exp(scene.rng.uniform(-0.12, 0.12, 3))
    size = np.ptp(xyz * stretch, axis=0)
    tall = (
        "tall"
        if size[2] > 1.6 * max(size[0], size[1])
        else "flat"
        if size[2] < 0.35 * max(size[0], size[1])
        else ""
    )
    noun = label.partition(" (")[0]
    words = f"{tall} {noun} with {details}".strip()
    article = "an" if words[0] in "aeiou" else "a"
    return Shape(xyz * stretch, rgb, label, synonyms, f"{article} {words}")
