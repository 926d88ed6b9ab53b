"""Bases and sparsity layer by layer under one budget: bytes, cycles, operations or accuracy.

``settings`` measures what every setting of every layer costs and how well it keeps the layer's sums,
``sensitivity`` how much of that error reaches the output, ``machine`` the cycles; ``search`` chooses and
checks the choice on the quantised network. What comes out is a pipeline, so ``escc compile -p`` repeats it.
"""
