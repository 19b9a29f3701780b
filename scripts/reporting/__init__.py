"""What people see of a run: pages, tables, charts, trackers."""
