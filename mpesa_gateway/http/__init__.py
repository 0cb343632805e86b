"""HTTP, in and out: the envelope of every answer, errors, pages, authentication, and guarded calls to merchants."""
