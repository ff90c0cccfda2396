"""What is done with result files: comparison statistics, stability, tables, figures and the page. Reads files only."""
