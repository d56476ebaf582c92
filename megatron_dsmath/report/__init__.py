"""A run's directory to a page and its figures: `megatron_dsmath.report.page.write_report`."""
