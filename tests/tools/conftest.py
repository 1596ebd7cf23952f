import cp_basicsr.archs  # noqa: F401  (BasicSR, mended where it does not import by itself)
