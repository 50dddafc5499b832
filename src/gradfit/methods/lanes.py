"""Placeholder."""

import numpy as np


def fit(kernel, block, starts, limits):
    from gradfit.methods.many import Ends

    return Ends.none(starts.theta), np.zeros(len(starts.theta), dtype=bool)
