"""What is tried: which engine, in which precision, from which graph."""
