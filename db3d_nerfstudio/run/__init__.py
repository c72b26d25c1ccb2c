"""What a run folder keeps beside the artifacts: configuration, manifest, progress, interventions, report."""
