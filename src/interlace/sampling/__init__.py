"""A sample of a large Parquet dataset: planned from footers, fetched by row group, never torn."""
