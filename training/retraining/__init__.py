"""Retraining on a schedule: a challenger, the gates, the decision."""
