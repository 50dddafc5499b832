"""Models: a function of data and named parameters, and how far off it is."""
