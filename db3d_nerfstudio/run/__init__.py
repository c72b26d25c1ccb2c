"""The records of a run: configuration, manifest, progress, losses and interventions."""
