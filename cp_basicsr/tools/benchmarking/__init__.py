"""Parts of the benchmark: networks, rivals, our own contenders, timing, tables, charts."""
