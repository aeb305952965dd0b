"""How the embedded model is made, from drawn clips to a model folder."""
