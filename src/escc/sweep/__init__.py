"""Design-space exploration: parameters of machine and compression against latency, energy, area, accuracy."""
