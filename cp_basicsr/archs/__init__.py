"""Architectures for BasicSR's ARCH_REGISTRY: ClassPruningNet and its classifiers.

Importing them imports BasicSR first, mended and complete; it may import them while it is being imported itself.
"""

from cp_basicsr.autoload import activate

activate()
