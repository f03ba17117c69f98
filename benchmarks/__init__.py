"""Programs that measure what the project claims of speed and memory."""
