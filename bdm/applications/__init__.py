"""Applications of a fitted model, and analyses without one."""
