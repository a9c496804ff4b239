"""Predicting a GPU's memory without one: so far a model of PyTorch's CUDA caching allocator."""
