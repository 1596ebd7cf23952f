"""ClassPruning for BasicSR. Importing this package imports neither torch nor basicsr."""

from importlib import import_module

__version__ = '0.1.0'
__all__ = ['ClassPruningModel', 'ClassPruningNet', '__version__', 'load']

_HOMES = {
    'ClassPruningModel': 'cp_basicsr.models.class_pruning_model',
    'ClassPruningNet': 'cp_basicsr.archs.class_pruning_arch',
    'load': 'cp_basicsr.restorer',
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
