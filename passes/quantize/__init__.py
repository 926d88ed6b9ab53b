"""Rules of quantize-hybrid, one per float operation, grouped by family."""
