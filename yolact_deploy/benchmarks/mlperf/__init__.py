"""MLPerf scenarios, driven by MLCommons LoadGen."""
