"""The evaluation room: measures of a run, evaluation folders, paired comparisons, the report."""
