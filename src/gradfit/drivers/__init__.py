"""Drivers: run a method on a problem. They yield solutions and know no statistics."""
