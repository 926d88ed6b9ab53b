"""Compression methods side by side: accuracy, operations, bytes, cycles and energy of many compiled networks.

``python -m benchmarks.compression`` runs what is missing of the experiments in ``experiments.toml`` and
prints the table; with ``--page docs/results/compression.md`` it writes page and plots; see ``--help``.
"""
