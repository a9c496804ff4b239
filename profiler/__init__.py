"""Find the largest and the fastest micro-batch that fit, and accumulate to an effective batch exactly."""
