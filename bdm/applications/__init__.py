"""Uses of a fitted model, and analyses without one. The core imports none of them."""
