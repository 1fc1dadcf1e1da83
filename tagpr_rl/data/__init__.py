"""LaMP records: files, tasks, retrieval, prompts, splits and the embedded world."""
