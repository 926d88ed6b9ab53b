"""Training and compression: networks that learn in the form they are compiled to."""
