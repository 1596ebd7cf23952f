"""Commands: ``python -m cp_basicsr.tools.X``."""
