"""Small helpers of all packages: values of callers, names, text of reports, child processes."""
