"""A FitRecord as text, pictures, a page, a file. Nothing is computed here."""
