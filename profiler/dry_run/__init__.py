"""Training on fake tensors, as a GPU would run it: shapes without numbers, whose memory goes through `simulation`."""
