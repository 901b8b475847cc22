"""The short-video domain: its events, its rules, its features."""
