"""What a study says: statements and pictures. Reads `store` and `search`, writes nothing."""
