"""Names of sets of cells in an evaluation."""

TAKEN = ("branched", "floor", "test", "train", "prepared", "unmoved")
