"""A stranger's plugin, as far as its templates go."""
