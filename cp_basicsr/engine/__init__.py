"""Running a supernet fast: patterns compiled to vector code, levels that differ from tile to tile."""

from .host import EngineUnavailableError
from .network_engine import NetworkEngine, run_reference

__all__ = ['EngineUnavailableError', 'NetworkEngine', 'run_reference']
