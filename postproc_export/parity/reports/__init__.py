"""What checks found: added up, put into words, tables, JSON, JUnit and Markdown."""
