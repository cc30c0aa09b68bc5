"""Packaging of openshape_jax; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
scope: dict[str, str] = {}
exec((here / "openshape_jax" / "version.py").read_text(), scope)

JAX = "jax{extra}>=0.10,<0.13"
BEAM = "apache-beam>=2.77,<3"  # the first version that was tried beside protobuf 6 and NumPy 2.4
RENDER = ["embreex>=4.4; platform_machine != 'aarch64'"]  # there are no wheels for Linux on ARM
TARGETS = ["faiss-cpu>=1.12", "httpx2>=2"]

setup(
    name="openshape_jax",
    version=scope["__version__"],
    description="Open-world 3D shape understanding by contrastive alignment with CLIP, in JAX",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["openshape_jax*", "tfds_builders*"]),
    package_data={"openshape_jax": ["assets/*"], "tfds_builders": ["*/*.csv", "*/*.md"]},
    install_requires=[
        JAX.format(extra=""),
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12,<1",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6",  # imported by tensorflow-datasets, which does not ask for it
        "grain>=0.2.12",
        "transformers>=5",
        "ptloader>=0.3,<0.4",  # reads PyTorch's files; its internals decide what a pickle may ask for
        "safetensors>=0.5",
        "huggingface_hub>=1",
        "ml_dtypes>=0.5",
        "numpy>=2",
        "scipy>=1.13",
        "chex>=0.1.90",
        "absl-py>=2",
        "jaxtyping>=0.3",
        "trimesh>=4.6",
        "pillow>=11",
        "matplotlib>=3.9",
        "tqdm>=4.66",
        "tenacity>=9",
        "h5py>=3.11",  # ScanObjectNN's files; 5 MB
        "tensorboardX>=2.6",
    ],
    extras_require={
        "quickstart": ["scikit-learn>=1.5"],
        "render": RENDER,  # openshape targets render: 45 MB, no display and no system library
        "targets": [*RENDER, *TARGETS],  # all stages of openshape targets
        "eval": ["scikit-learn>=1.5"],  # few-shot probes
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "ruff==0.17.6",
            "pyright[nodejs]>=1.1.400",
            "scikit-learn>=1.5",
            BEAM,
            *RENDER,
            *TARGETS,
        ],
        "beam": [BEAM],  # builds data sets on a cluster: tfds_builders/README.md
        "cuda": [JAX.format(extra="[cuda13]")],
        "tpu": [JAX.format(extra="[tpu]")],
        "tpu-dryrun": [JAX.format(extra="[tpu]")],  # libtpu compiles for TPUs on machines without one
    },
    entry_points={"console_scripts": ["openshape = openshape_jax.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
