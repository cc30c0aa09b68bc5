"""Whether a title says what a shape is, judged by rules: no model, no network, microseconds a text.

A text is turned down where nothing is left of it after ids, numbers, codes, file suffixes and words that fit
any shape ("untitled", "final", "test") are taken away, or where it is not English. Reasons are those of the
labelled titles in experiments/text_filter, which measures the rules.
"""

from __future__ import annotations

import itertools
import re
import unicodedata

VERSION = 1  # another number makes `openshape targets filter` judge again
REASONS = ("id", "hash", "file_name", "boilerplate", "no_content", "language")

_SUFFIXES = (
    "3ds 3mf 7z abc avi blend bmp c4d csv dae dwg dxf exr fbx gif glb gltf hdr html iges igs jpeg jpg json "
    "lwo ma max mb mov mp4 mtl obj off pcd pdf ply png psd rar rvt skp sldprt spp step stl stp svg tar tga "
    "tif tiff txt unity unity3d unitypackage uasset usd usda usdc usdz vox webp wrl x3d xml xyz zip zpr ztl"
)
# Words that fit any shape, by what they make of a title that has no others.
_TECHNICAL = (
    "asset assets bundle body component default entity export exported file geo geometry group import "
    "imported instance layer low material mesh meshes node nodes nurbs obj object objects output part "
    "parts pcube pcylinder pplane polysurface primitive prop psphere root shape sm solid submesh surface "
    "uid id sku ref"
)
_BOILERPLATE = (
    "123d 3d a agisoft all an and any assignment at attempt autodesk based basic below beta blender by c4d "
    "capture captured catch class click copy course created demo description draft done download example "
    "exam exercise exporter export final finished first for free from here homework i in inprogress is "
    "kiri like link lowpoly made maya meshroom metashape midterm mine misc model modeled modelling "
    "modeling models my new no nomad object of old on online other our page photogrammetry photoscan "
    "please poly polycam portfolio practice preview project qlone random realitycapture render rendered "
    "result revised sample scan scaniverse scanned scene school sculpt sculptris see sketchfab sketchup "
    "student studio submission subscribe task temp template test testing tests the thing things this "
    "tinkercad to trial trnio turntable tutorial unit unity unreal untitled upload uploaded ver version "
    "vertex view viewer week wip with work year your zbrush animation animated rigged texture textured "
    "textures diffuse normal albedo roughness specular ao pbr uv hd lod high res low default rev alpha folder"
)
_EMPTY = (
    "asdf asdfg asdfgh asdfghjkl qwe qwer qwert qwerty zxcv zxcvbn foo bar baz blah bla lorem ipsum dolor "
    "sit amet idk lol haha hello hi na none null nan nil unknown name title unnamed wip tbd todo delete "
    "stuff whatever something nothing"
)
_CAMERA = (
    "img image dsc dscn dscf dcim pano pic photo picture screenshot screen shot scan vid video mov frame"
)
# Of the words above these are things, too, where nothing else stands beside them.
_THINGS = frozenset(["blender", "folder", "picture", "frame", "screen", "photo", "camera", "body", "shape"])
# Frequent small words of other languages that are no English words.
_FOREIGN = {
    "german": "aus mit und ein eine einem einer eines für auf dem des vom zum zur ohne mein kein",
    "french": "le la les du des et dans avec une sur en pour sans aux mon petite",
    "spanish": "el la los las del de con una para en un",
    "portuguese": "com da dos de em uma para um sem ao",
    "italian": "il gli da di della del dello dei con una nel un",
    "dutch": "een het voor bij zonder",
    "polish": "dla bez oraz",
    "swedish": "och på till ett utan",
    "turkish": "ve ile için bir",
}
_ENGLISH = "a an and the of with in on for from by to at is this that my without under over"
# Letters that English borrows only with the word (é in café) count less than those that it never has.
_NEVER = set("ßłąężźćśńőűřůěışğțșăđøåœæþðõãñ")
_WORD = re.compile(r"[^\W\d_]+", re.UNICODE)

_TECHNICAL_WORDS, _EMPTY_WORDS = frozenset(_TECHNICAL.split()), frozenset(_EMPTY.split())
_BOILERPLATE_WORDS, _CAMERA_WORDS = frozenset(_BOILERPLATE.split()), frozenset(_CAMERA.split())
_ENGLISH_WORDS = frozenset(_ENGLISH.split())
_FOREIGN_WORDS = [frozenset(few.split()) for few in _FOREIGN.values()]
# What modelling programs call a thing that nobody has named: "Cube.003", "pCube14".
_UNNAMED = re.compile(
    r"(cube|(ico|uv)?sphere|plane|cylinder|cone|torus|box|line|circle|b(e|é)ziercurve)[._]\d{2,}",
    re.I,
)
_SUFFIX = re.compile(rf"\.({'|'.join(_SUFFIXES.split())})\s*$", re.I)


def title_of(stem: str) -> str:
    """Words of a file name without its suffix: "WoodenSpoon_02" -> "Wooden Spoon 02"."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", stem.replace("_", " "))
    return " ".join(spaced.split())


def judge(text: str) -> str:
    """The reason (one of REASONS) why a text does not say what a shape is; "" where it does."""
    clean = unicodedata.normalize("NFC", text).strip()
    if not any(letter.isalpha() for letter in clean):
        return "id" if any(letter.isdigit() for letter in clean) else "no_content"
    if _is_hash(clean):
        return "hash"
    stem = clean.replace("\\", "/").rsplit("/", 1)[-1] if _SUFFIX.search(clean) else clean
    is_file = bool(_SUFFIX.search(stem))
    stem = _SUFFIX.sub("", stem)
    if _UNNAMED.fullmatch(stem):
        return "boilerplate"
    return _of_language(clean) or _of_words(stem, is_file)


def _is_hash(text: str) -> bool:
    """Whether it is one word of a hash, a UUID or an id in base 58 or 64."""
    plain = re.sub(r"[-{}]", "", text)
    if " " in text or len(plain) < 8:
        return False
    digits = sum(c.isdigit() for c in plain)
    if re.fullmatch(r"[0-9a-fA-F]+", plain):
        return digits >= 2
    if not re.fullmatch(r"[0-9A-Za-z+/=]+", plain) or len(plain) < 12:
        return False
    # Words run through one kind of letter; random ones change between small, large and digits.
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in plain]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    return digits >= 2 and changes > len(plain) / 3


def _of_language(text: str) -> str:
    letters = [c for c in text if c.isalpha()]
    latin = sum("LATIN" in unicodedata.name(c, "") for c in letters)
    if latin < len(letters) / 2:
        return "language"
    words = [word.lower() for word in re.split(r"[\W_]+", text) if len(word) > 1]
    english = sum(word in _ENGLISH_WORDS for word in words)
    strange = sum(any(c in _NEVER for c in word) for word in words)
    foreign = max(sum(word in few for word in words) for few in _FOREIGN_WORDS)
    return "language" if len(words) > 1 and strange + foreign > english else ""


def _of_words(stem: str, is_file: bool) -> str:
    """What is left when words that say nothing are taken away, and what is made of it where nothing is."""
    words = [word.lower() for word in _WORD.findall(title_of(stem.replace("-", " ")))]
    left = [word for word in words if not _says_nothing(word)]
    if left or (words and _THINGS.issuperset(words) and not re.search(r"\d", stem)):
        return ""
    if is_file:
        return "file_name"
    kinds = {word for word in words if len(word) > 1}
    if kinds & _CAMERA_WORDS and re.search(r"\d{3,}", stem):
        return "file_name"
    if not kinds or all(_is_mash(word) for word in words) or kinds & _EMPTY_WORDS:
        return "no_content"
    return "id" if kinds <= _TECHNICAL_WORDS and re.search(r"\d", stem) else "boilerplate"


def _says_nothing(word: str) -> bool:
    listed = _TECHNICAL_WORDS | _BOILERPLATE_WORDS | _EMPTY_WORDS | _CAMERA_WORDS
    return len(word) == 1 or word in listed or _is_mash(word)


def _is_mash(word: str) -> bool:
    """Whether no tongue speaks it: one letter repeated, or keys in a row."""
    rows = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    return len(set(word)) == 1 or (len(word) > 3 and any(word in row for row in rows))
