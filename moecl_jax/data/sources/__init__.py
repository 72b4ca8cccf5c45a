"""Sources of tasks' examples."""
