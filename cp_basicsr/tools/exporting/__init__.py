"""Levels as plain networks: what an exported file says about itself, how it is written, checked and proved."""
