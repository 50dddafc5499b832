"""Methods: how a fit goes from one parameter vector to the next. They know a kernel, and neither data nor printing."""
