"""Brings our classes and functions into BasicSR's registries."""

import pkgutil
from importlib import import_module

# As BasicSR scans its own folders: in each, the modules whose names end so. Models last, they use all the others.
_ENDINGS = {
    'archs': '_arch',
    'losses': '_loss',
    'metrics': '_metric',
    'data': '_dataset',
    'models': '_model',
}


def register() -> None:
    """Import every module of this package that registers something with BasicSR.

    Called after `basicsr.models` has been imported, by `cp_basicsr.autoload`, which also sees that it happens once.

    Raises:
        Exception: whatever importing one of the modules raises.
    """
    for folder, ending in _ENDINGS.items():
        package = import_module(f'cp_basicsr.{folder}')
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith(ending):
                import_module(f'{package.__name__}.{module.name}')
    import_module('cp_basicsr.data.diagnosis').install_data_diagnosis()
    import_module('cp_basicsr.models.option_check').install_early_check()
