"""Programs that measure escc; not part of the package."""
