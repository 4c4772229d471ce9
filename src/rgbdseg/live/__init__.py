"""Labels live: the newest frame of a camera or of a recording, seen by a model, shown at once."""
