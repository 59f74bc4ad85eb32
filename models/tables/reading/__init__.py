"""Reading tables that people wrote as text."""
