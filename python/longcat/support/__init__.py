"""Small helpers of every room: values of callers, names, text of reports, child processes."""
