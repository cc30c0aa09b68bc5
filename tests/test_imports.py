"""The directions of imports that the layout promises, file lengths, and start-up weight."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "openshape_jax"
# Studies that compare with PyTorch where a person has it; they belong neither to the package nor its tests.
WITH_TORCH = [
    PACKAGE.parent / "experiments" / name
    for name in (
        "torch_interchange/check.py",
        "torch_interchange/torch_pointbert.py",
        "encoder_speed/peer.py",
        "clip_fixtures/make.py",
    )
]
# From the bottom up: a module may import from its own layer's package and from layers before it.
LAYERS = [
    {"version"}, {"overrides"}, {"config"}, {"ops"}, {"models"}, {"losses"}, {"relations"}, {"optim"},
    {"sharding"}, {"runtime"},
    {"data"}, {"mesh_sampling"}, {"obj_reader"}, {"mesh_files"}, {"geometry_io"}, {"render"}, {"augment"},
    {"state"}, {"checkpoint"}, {"metrics"}, {"watch"},
    {"evals"}, {"train"}, {"hlo"}, {"dryrun"},
    {"convert"}, {"clip_inputs"}, {"clip"}, {"making"}, {"errors"}, {"api"}, {"evaluate"}, {"main"}, {"cli"},
]  # fmt: skip
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "openshape_jax":
                names |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("openshape_jax.")}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_layers_above(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imported(path) - {own, "load", "load_clip", "__version__"}:
        assert RANK[name] < RANK[own], f"{own} imports {name}"
        assert {own, name} != {"data", "models"}


def test_only_checkpoint_imports_orbax_and_nothing_torch_or_tensorflow():
    for path in PACKAGE.parent.rglob("*.py"):
        if ".venv" in path.parts or path in WITH_TORCH:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            roots = {m.split(".")[0] for m in modules}
            assert not roots & {"torch", "tensorflow"}, path
            assert "orbax" not in roots or path == PACKAGE / "checkpoint.py", path


@pytest.mark.parametrize(
    "command", ["import openshape_jax", "import openshape_jax.main", "import openshape_jax.cli.main"]
)
def test_start_up_imports_nothing_heavy(command):
    heavy = ("jax", "flax", "orbax", "trimesh", "grain", "matplotlib")
    code = f"{command}; import sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_file_over_400_lines():
    root = PACKAGE.parent
    files = [
        p
        for d in ("openshape_jax", "tfds_builders", "tests", "configs", "experiments")
        for p in (root / d).rglob("*.py")
    ]
    assert len(files) > 20
    assert [str(p) for p in files if len(p.read_text().splitlines()) > 400] == []
