"""What measurements leave behind: rows, their verdicts, folders, tables, pictures, reports."""
