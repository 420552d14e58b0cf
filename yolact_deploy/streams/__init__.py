"""Sources of pictures and video frames, and video files to write. Knows no network."""
