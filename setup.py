"""Packaging of mmdiff_pipelines.

The ranges hold the versions that the test suite has seen: torch 2.14.1, diffusers 0.42.1, huggingface_hub 2.4.0, numpy
2.4.6, pillow 12.3 and 13.0, accelerate 1.15.0, datasets 5.2.0, transformers 5.23.0, peft 0.21.2.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "src/mmdiff_pipelines/__init__.py").read_text(), re.M)[1]

CORE = [
    "torch>=2.14,<2.15",
    "diffusers>=0.42,<0.43",  # its table of loadable classes is semi-private: see src/mmdiff_pipelines/__init__.py
    "huggingface_hub>=2.4,<3",
    "numpy>=2.4,<3",
    "pillow>=12,<14",
    "safetensors>=0.8,<0.9",
]
EXTRAS = {
    "training": [
        "accelerate>=1.15,<1.16",
        "datasets>=5.2,<5.3",
        "tensorboard>=2.21,<2.22",
        "transformers>=5.23,<5.24",
        "peft>=0.21,<0.22",
    ],
    "evaluation": [
        "torchvision>=0.29,<0.29.2",
        "torch-fidelity>=0.4,<0.5",
        "torchmetrics>=1.9,<1.10",
        "lpips>=0.1.4,<0.2",
        "scikit-learn>=1.9,<1.10",
        "matplotlib>=3.11,<3.12",
    ],
    "app": ["gradio>=6,<7"],
    "quality": ["ruff==0.17.6", "pre-commit>=4,<5"],
}
EXTRAS["test"] = ["pytest>=9.2,<10", "pytest-xdist>=3.8,<4", *EXTRAS["training"], *EXTRAS["evaluation"]]
EXTRAS["dev"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})

setup(
    name="mmdiff_pipelines",
    version=VERSION,
    description="Multimodal, multitask diffusion in the style of diffusers: give any subset, get the rest.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The mmdiff_pipelines authors",
    package_dir={"": "src"},
    packages=find_packages("src"),
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
