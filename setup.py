import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / 'README.md'
VERSION = re.search(r"^__version__ = '(.+)'$", (ROOT / 'cp_basicsr/__init__.py').read_text(encoding='utf-8'), re.M)[1]
# ONNX files and their check, safetensors files, and the loader of the graphical programs that open what we export.
EXPORT = ['onnx>=1.17', 'onnxscript>=0.5', 'onnxruntime>=1.20', 'safetensors>=0.4', 'spandrel>=0.4']
TOOLS = ('restore', 'export', 'profile', 'benchmark', 'leaderboard')

setup(
    name='cp-basicsr',
    version=VERSION,
    description='ClassPruning for BasicSR: N:M-pruned subnets chosen for each image or tile by its difficulty',
    long_description=README.read_text(encoding='utf-8') if README.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    # The option files lie where BasicSR users look for them; an installation has a copy (cp_basicsr/option_files.py).
    packages=[*find_packages(include=['cp_basicsr', 'cp_basicsr.*']), 'cp_basicsr.options_installed'],
    package_dir={'cp_basicsr.options_installed': 'options'},
    package_data={
        'cp_basicsr': ['checkpoints/*', 'tools/leaderboards/*.yml', 'tools/reproducing/*.yml'],
        'cp_basicsr.options_installed': ['*.yml'],
    },
    # 3.13 cannot build basicsr 1.4.2 (KeyError: '__version__' in its setup.py).
    python_requires='>=3.10,<3.13',
    install_requires=[
        'basicsr==1.4.2',
        # 2.5 is the first torch that loads the entry points below.
        'torch>=2.5,<2.14',
        'torchvision>=0.20,<0.29',
        'timm>=1.0,<2',
        'numpy>=1.26,<3',
        # 2.0 ends scipy.ndimage.filters, which basicsr's NIQE imports.
        'scipy>=1.11,<2',
        'scikit-image>=0.22,<1',
        'opencv-python>=4.8,<6',
        'lmdb>=1.4',
        'matplotlib>=3.8,<4',
        'pyyaml>=6.0',
        'tqdm>=4.60',
        'pillow>=10.1',
        'tifffile>=2023.7',
        # LLVM in the process: the engine's assembler and the loops around its code.
        'llvmlite>=0.44,<1',
        # basicsr imports distutils, which Python 3.12 takes from setuptools; from 70.1 on that needs no wheel package.
        'setuptools>=70.1',
    ],
    extras_require={
        'export': EXPORT,
        # What the benchmark times us against.
        'benchmark': ['onnx>=1.17', 'onnxscript>=0.5', 'onnxruntime>=1.20', 'openvino>=2024.6'],
        # ruff's formatting differs from one minor version to the next.
        'test': ['pytest>=7.4', 'hypothesis>=6.90', 'ruff>=0.17,<0.18', *EXPORT],
    },
    entry_points={
        'torch.backends': ['cp_basicsr = cp_basicsr.autoload:install'],
        'console_scripts': [
            'cp-train = cp_basicsr.train:main',
            'cp-test = cp_basicsr.test:main',
            *(f'cp-{tool} = cp_basicsr.tools.{tool}:main' for tool in TOOLS),
        ],
    },
)
