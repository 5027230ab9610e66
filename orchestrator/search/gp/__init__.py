"""The Gaussian process sampler and the model below it."""
