"""Sources of data: files and folders here or behind a URL, and sets fetched on demand."""
