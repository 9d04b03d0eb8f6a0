"""Many sequences of one target, decoded together: shared passes, and a slot for each sequence."""
