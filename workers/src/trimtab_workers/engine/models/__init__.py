"""Model families; a family is a shape, the names of its tensors, and a forward pass."""
