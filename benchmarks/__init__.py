"""Speed, memory and quality, ours beside others in one run."""
