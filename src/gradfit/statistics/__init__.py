"""From a solution to what may be said of it: uncertainties, goodness of fit, verdicts."""
