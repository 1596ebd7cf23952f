"""Picture files for `cp_basicsr.tools.restore`: which ones, reading them, writing them."""
