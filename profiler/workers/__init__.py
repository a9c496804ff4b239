"""Where trials run: a fork server's workers, or the caller's own process."""
