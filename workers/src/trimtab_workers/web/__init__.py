"""What every listening process of the workers' side shares: error objects, logs, listeners."""
