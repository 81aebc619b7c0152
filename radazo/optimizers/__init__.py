"""Complete optimizers and the transformations they are made of."""
