"""LaMP records: files, tasks, splits and the embedded world."""
