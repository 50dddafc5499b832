"""Drop-ins for other libraries: their signatures, their words, their errors; gradfit underneath."""
