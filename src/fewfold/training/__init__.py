"""What all trainings from scratch have in common: settings that are checked, and the record of a run."""
