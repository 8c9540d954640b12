"""What a monitoring system asks of servers and nodes: metrics, health, and log lines as JSON."""
