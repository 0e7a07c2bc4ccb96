"""What operators see and choose: settings, logs, metrics, and the process itself."""
