"""Where data comes from: files and folders here or behind a URL, and sets fetched on demand."""
