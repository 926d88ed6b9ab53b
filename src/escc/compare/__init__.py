"""Networks on several machines: what is compared, with which numbers, and what comes out."""
