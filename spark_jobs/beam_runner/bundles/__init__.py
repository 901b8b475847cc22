"""What one task of an epoch does: stages, what travels between them, side inputs, restrictions."""
