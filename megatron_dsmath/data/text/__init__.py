"""Documents from JSONL, gzip, Zstandard and Parquet files."""
