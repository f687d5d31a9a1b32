"""Packages, extras and console scripts of mm01_jax."""

import pathlib

from setuptools import find_packages, setup

# A Jupyter kernel, and what runs a notebook from a program.
_NOTEBOOKS = ["ipykernel>=6.29", "nbclient>=0.10"]

setup(
    name="mm01_jax",
    version="0.3.0",
    description="MiniMax-01 (lightning attention, softmax attention, experts) in JAX/Flax for TPUs and GPUs",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.12",
    # The configs of a checkout's top folder are part of the package when it is installed (config/command_line.py).
    packages=[*find_packages(include=["mm01_jax*", "pallas_kernels*"]), "mm01_jax.configs"],
    package_dir={"mm01_jax.configs": "configs"},
    package_data={"mm01_jax": ["py.typed", "*.pyi", "inference/serve/page.html"]},
    install_requires=[
        "jax>=0.11.2",
        "flax>=0.12.9",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "numpy>=2.0",
        "absl-py>=2.1",
        "safetensors>=0.8",
        "flatbuffers>=24.3",  # what jax.export writes with
        "filelock>=3.12",  # guards the compile cache that processes share
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda13]"],
        # Compilers alone, for plans on a machine without an accelerator (python -m mm01_jax.plan).
        "tpu-aot": ["libtpu"],
        "gpu-aot": ["jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm"],
        "tokenizers": ["tokenizers>=0.23"],
        "parquet": ["pyarrow>=17"],
        "zstd": ["zstandard>=0.22"],
        "beam": ["apache-beam>=2.60"],  # mm01-tokenize on a cluster's engine
        "remote": ["fsspec>=2024.6"],  # data by URL; the libraries of two stores
        "gcs": ["gcsfs>=2024.6"],
        "s3": ["s3fs>=2024.6"],
        "chat": ["jinja2>=3.1.6", "tokenizers>=0.23"],  # chat templates that come with a checkpoint
        # mm01-serve; jinja2 and tokenizers as of `chat`.
        "serve": [
            *("starlette>=1.0", "uvicorn>=0.50", "prometheus-client>=0.20", "llguidance>=1.9"),
            *("jinja2>=3.1.6", "tokenizers>=0.23"),
        ],
        "tensorboard": ["tensorboardX>=2.6"],
        "plots": ["matplotlib>=3.9"],
        "vision": ["pillow>=11"],
        "ruler": ["wonderwords>=3.0.1"],  # the words of RULER, for samples of its published strings
        "lm-eval": ["lm-eval>=0.4.13"],  # mm01-eval lm-eval; without torch, which our tasks of it do not need
        "notebooks": _NOTEBOOKS,
        # Tests that compare with the original code; they skip without it. On CPU take torch from its CPU index.
        "interop": ["torch>=2.6", "transformers>=5"],
        # libtpu compiles for TPUs on a machine without one.
        "test": [
            *_NOTEBOOKS,
            "pytest>=8",
            "pytest-xdist>=3.7",
            "hypothesis>=6",
            "jinja2>=3.1.6",
            "ruff>=0.8",
            "libtpu",
            "matplotlib>=3.9",
            "tokenizers>=0.23",
            "pyarrow>=17",
            "zstandard>=0.22",
            "fsspec>=2024.6",
            "starlette>=1.0",
            "uvicorn>=0.50",
            "prometheus-client>=0.20",
            "llguidance>=1.9",
            "openai>=3.57",
            "llm-comply>=0.5",
            # Pixels are compared to the last bit, and Pillow's versions resize differently; the others bring images.
            "pillow==13.0.0",
            "scikit-image>=0.25",
            "scikit-learn>=1.6",
        ],
    },
    entry_points={
        "console_scripts": [
            "mm01-train=mm01_jax.train.__main__:main",
            "mm01-generate=mm01_jax.inference.__main__:main",
            "mm01-serve=mm01_jax.inference.serve.__main__:main",
            "mm01-eval=mm01_jax.evals.__main__:main",
            "mm01-convert=mm01_jax.convert.__main__:main",
            "mm01-plan=mm01_jax.plan.__main__:main",
            "mm01-tokenize=mm01_jax.data.tokenize.__main__:main",
        ]
    },
)
