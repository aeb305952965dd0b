"""The embedded model `tiny`: its world, its grammar, its scorer, and the recipe that trains it."""
