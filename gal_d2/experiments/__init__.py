"""Studies of the method away from detection."""
