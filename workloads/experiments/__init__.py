"""What is measured on networks that runs make, and what becomes of it."""
