"""InferenceIntent, by lifecycle step: source, inspection, fingerprints, plan, children, status."""
