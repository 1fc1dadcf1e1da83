"""Official LaMP metrics, evaluation of responses, controls and baselines."""
