"""How exact vectors are in each type in which a GPU may compute products."""
