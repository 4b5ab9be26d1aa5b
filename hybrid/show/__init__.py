"""Everything that draws or prints for people: tables, status lines, progress, pictures."""
