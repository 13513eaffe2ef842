"""Installs GAL-D2. torch and detectron2 are the user's own: see README.md, "Install"."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Instance generation: text-to-image, segmentation and filters.
GENERATE = [
    "diffusers>=0.30",
    "transformers>=4.44",
    "accelerate>=0.33",
    "safetensors>=0.4",
    "rembg[cpu]>=2.0.57",
]
# Generation on a cluster.
SCALE = ["ray[default]>=2.30"]
# The miniature, the street photographs and the noise experiment: sources, labels, AUC.
TESTBEDS = ["scikit-image>=0.22", "scikit-learn>=1.3", "scipy>=1.10"]
# The documentation site (make docs).
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]

setup(
    name="gal-d2",
    version="0.1.0",
    description="Generative active learning for long-tailed instance segmentation on detectron2",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["gal_d2", "gal_d2.*"]),
    package_data={"gal_d2.reporting": ["assets/*"], "gal_d2.review": ["page.html"]},
    # detectron2 is not listed: it is no registry package. tools/install_detectron2.py takes the
    # build that is there, or installs the pure-Python copy.
    install_requires=[
        "torch>=2.3",
        "torchvision>=0.18",
        "numpy>=1.24",
        "opencv-python>=4.8",
        "Pillow>=9.5",
        "pyarrow>=14.0.1",
        "pycocotools>=2.0.7",
        "PyYAML>=5.1",
        "lvis>=0.5.3",
        "hotcoco>=1.3",
        "timm>=1.0",
        "tqdm>=4.60",
        "matplotlib>=3.7",
        "plotly>=5.20",
        "MarkupSafe>=2.0",
        "tensorboard>=2.14",
    ],
    extras_require={
        "dev": ["pytest>=8", "hypothesis>=6.100", "ruff>=0.8", *GENERATE, *SCALE, *TESTBEDS, *DOCS],
        "docs": DOCS,
        "generate": GENERATE,
        "scale": SCALE,
        "wandb": ["wandb>=0.16"],
        "testbeds": TESTBEDS,
    },
)
