"""Is accumulation equal to the whole batch, for this model and loss? Measured on a small batch, in fp64 where it can be."""
