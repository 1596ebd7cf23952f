"""Parts of the benchmark: networks, contenders, timing, results, and how they are shown."""

from cp_basicsr.autoload import activate

activate()
