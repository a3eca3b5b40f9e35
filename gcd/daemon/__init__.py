"""The daemon: when cycles run, who is told of them, and how they are stopped."""
