"""Makes an unmodified BasicSR know our types.

torch (2.5 and later) calls every entry point of the group `torch.backends` at the end of `import torch`
(https://github.com/pytorch/pytorch/issues/122468). Ours is `install`: it puts one finder on `sys.meta_path`, which
lies idle until `basicsr` is imported. Then it applies the mends of `cp_basicsr.compat` and, once `basicsr.models` is
complete, registers our types. An exception in `install` would break `import torch` for everybody, so it does no more.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def install() -> None:
    """Make the next import of `basicsr` apply our mends and register our types. Calling it again changes nothing."""
    if not _plugin.registered and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def activate() -> None:
    """Import `basicsr`, mended and with our types registered, even where torch loads no entry points.

    Raises:
        Exception: whatever the mends or the registration raised, also when `basicsr` was imported before and the
            failure has been only a warning until now.
    """
    install()
    import basicsr  # noqa: F401

    models = sys.modules.get('basicsr.models')
    if models is not None and not getattr(models.__spec__, '_initializing', False):
        _plugin.mend()
        _plugin.register()
    if _plugin.error is not None:
        raise _plugin.error


class _Plugin:
    """What has been done to BasicSR in this process. Each step runs once; a failure is kept and warned about."""

    def __init__(self) -> None:
        self.mended = False
        self.registered = False
        self.error: Exception | None = None

    def mend(self) -> None:
        if not self.mended:
            self.mended = True
            self._attempt(_mend_before_import)

    def register(self) -> None:
        if not self.registered:
            self.registered = True
            self._attempt(_mend_and_register)
            if _finder in sys.meta_path:
                sys.meta_path.remove(_finder)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self.error = self.error or error
            import traceback
            import warnings

            warnings.warn(
                'ClassPruning (cp_basicsr) could not join BasicSR, which goes on without it. '
                f'`python -m cp_basicsr.train` stops at this error instead.\n{traceback.format_exc()}',
                RuntimeWarning,
                stacklevel=2,
            )


def _mend_before_import() -> None:
    from cp_basicsr import compat

    compat.mend_before_import()


def _mend_and_register() -> None:
    from cp_basicsr import compat, registration

    compat.mend_after_import()
    registration.register()


class _BasicSRFinder:
    """Finds `basicsr` and `basicsr.models` as the other finders do, and runs our steps around their code."""

    def __init__(self) -> None:
        self._searching: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != 'basicsr' and not name.startswith('basicsr.'):
            return None
        if name != 'basicsr':
            # basicsr itself was already being imported when it imported torch, and torch called install.
            _plugin.mend()
        if name not in ('basicsr', 'basicsr.models') or name in self._searching:
            return None
        spec = self._ask_others(name, path, target)
        if spec is not None and spec.loader is not None:
            _wrap(spec.loader)
        return spec

    def _ask_others(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        self._searching.add(name)  # another finder that asks all the others must not come back to this one
        try:
            for finder in list(sys.meta_path):
                find_spec = getattr(finder, 'find_spec', None)
                if finder is not self and find_spec is not None:
                    spec = find_spec(name, path, target)
                    if spec is not None:
                        return spec
            return None
        finally:
            self._searching.discard(name)


def _wrap(loader: Any) -> None:
    """Run `mend` before `loader` executes a module, and `register` after `basicsr.models`.

    The loader stays the object it is, because inspect, importlib.resources and pickling ask for its other methods.
    """
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        _plugin.mend()
        execute(module)
        if module.__name__ == 'basicsr.models':
            _plugin.register()

    loader.exec_module = exec_module


_plugin = _Plugin()
_finder = _BasicSRFinder()
