"""Element types, strided views, and the reading, casting and comparing of elements."""
