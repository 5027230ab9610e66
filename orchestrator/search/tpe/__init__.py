"""The TPE sampler, ranked within cells."""
