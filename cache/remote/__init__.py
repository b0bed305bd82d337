"""What jobs read from elsewhere and deliver there: `s3://` and `https://`."""
