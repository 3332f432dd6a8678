"""The HTML report of a data set, and the card of a model."""
