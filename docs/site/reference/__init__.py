"""The pages under docs/reference, generated from the code: ``python -m docs.site.reference``."""
