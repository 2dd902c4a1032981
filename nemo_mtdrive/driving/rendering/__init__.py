"""How the front picture is painted: a clipping pinhole canvas, the ground, and the bodies on it."""
