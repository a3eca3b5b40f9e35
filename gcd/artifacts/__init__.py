"""Where artifact bytes live: one module per family of stores, imported when its scheme is first met."""
