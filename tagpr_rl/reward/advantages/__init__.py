"""Advantages of responses: within a group, per reward component, and per tagged step."""
