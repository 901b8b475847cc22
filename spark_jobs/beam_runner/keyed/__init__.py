"""State, timers, groupings and triggers, by key group."""
