"""Tables, figures and the audit: what a run's results look like beside the paper's."""
