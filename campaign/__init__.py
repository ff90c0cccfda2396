"""Long campaigns: programs that try to lose, double or corrupt something, resumable, each with one table at its end."""
