"""From a model to the numbers a method asks for: prediction, loss, gradient, Jacobian."""
