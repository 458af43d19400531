"""The shell: everything with side effects."""
