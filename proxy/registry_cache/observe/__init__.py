"""What has happened: figures, metrics, logs, history, and what an operator should look at."""
